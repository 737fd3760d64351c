"""The study of flicker and smear, on a short clip of a sample photograph."""

import const
from studies import flicker


def test_smoothing_quietens_a_still_face_and_smears_nothing(small_bundled, monkeypatch, capsys):
    monkeypatch.setattr(flicker, "FRAMES", 13)
    monkeypatch.setattr(flicker, "OPTIONS", [(0.0, 1), (0.6, 4)])
    assert flicker.main([str(const.TEST_DIR / "bryan.png"), "--weights", str(small_bundled[0])]) == 0
    head, *rows = capsys.readouterr().out.splitlines()[-3:]
    assert head.startswith("smooth")
    plain, smoothed = ([float(cell.strip("%,")) for cell in row.split()] for row in rows)
    assert smoothed[2] < plain[2] / 2  # flicker
    assert max(smoothed[3:5]) < max(plain[3:5]) + 1  # % of the bar and of the hand that is called face
    assert smoothed[5] < 0.5 < plain[5]  # passes a frame of the still face
