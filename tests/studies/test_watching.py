"""What watching costs: under a hundredth of a processor, told with how it was measured."""

import json

import pytest

from studies.watching import main


def test_watching_a_recorded_gpu_takes_less_than_a_hundredth_of_a_processor(tmp_path, capsys):
    main(["--device", "cpu", "--pairs", "2", "--seconds", "0.5", "--out", str(tmp_path / "found.json")])
    found = json.loads((tmp_path / "found.json").read_text())
    assert 0 < found["cpu_share"] < 0.01
    assert found["samples_per_second"] > 4  # so that it was watched
    assert not found["driver"]
    assert len(found["rate_ratio"]["all"]) == found["pairs"] == 2
    assert "of one processor" in capsys.readouterr().out


@pytest.mark.parametrize("given", [["--pairs", "1"], ["--seconds", "0"]])
def test_what_shows_nothing_is_refused(given, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--device", "cpu", *given])
    assert ended.value.code == 2
    assert "at least 2 pairs" in capsys.readouterr().err
