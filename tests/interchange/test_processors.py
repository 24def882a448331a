import json

import numpy as np
import pytest

from jaxvla.errors import WeightsError
from jaxvla.interchange import processors
from jaxvla.interchange.processors import NORMALIZE, RENAME, Pipeline, Step, read_pipeline, write_pipeline

STATISTICS = {"observation.images.top": {"mean": np.ones((3, 1, 1), np.float32)}, "action": {"count": np.array([7])}}


@pytest.fixture
def folder(tmp_path):
    steps = (Step(RENAME, {"rename_map": {"a": "b"}}), Step(NORMALIZE, {"eps": 1e-8}, STATISTICS))
    write_pipeline(tmp_path, Pipeline(processors.PREPROCESSOR, steps))
    return tmp_path


def entries(folder):
    return json.loads((folder / "policy_preprocessor.json").read_text())["steps"]


def test_a_pipeline_comes_back(folder):
    found = read_pipeline(folder, processors.PREPROCESSOR)
    assert [step.kind for step in found.steps] == [RENAME, NORMALIZE]
    assert found.step(RENAME).config == {"rename_map": {"a": "b"}}
    assert found.step(processors.TOKENIZE) is None
    np.testing.assert_array_equal(found.step(NORMALIZE).statistics["observation.images.top"]["mean"], np.ones(3))
    assert found.step(NORMALIZE).statistics["action"]["count"].tolist() == [7]
    assert entries(folder)[1]["state_file"] == "policy_preprocessor_step_1_normalizer_processor.safetensors"
    assert read_pipeline(folder, processors.POSTPROCESSOR) is None


def test_what_is_wrong_with_a_pipeline(folder):
    path, steps = folder / "policy_preprocessor.json", entries(folder)
    for changed, message in (
        ("{", "is not JSON: download it again"),
        ("[]", "holds a list, no object"),
        ("{}", r"is damaged \(KeyError\('steps'\)\)"),
        ({"steps": [{"config": {}}]}, r"is damaged \(KeyError\('class'\)\)"),
        ({"steps": [{"registry_name": "delta_actions"}]}, "a step 'delta_actions', which is not done here"),
        ({"steps": [steps[1] | {"state_file": "../x.safetensors"}]}, "names the file '../x.safetensors', which is not"),
        ({"steps": [steps[1] | {"state_file": "gone.safetensors"}]}, "names the file 'gone.safetensors', which is not"),
    ):
        path.write_text(changed if isinstance(changed, str) else json.dumps(changed))
        with pytest.raises(WeightsError, match=message):
            read_pipeline(folder, processors.PREPROCESSOR)


def test_statistics_that_were_cut_off(folder):
    path = folder / entries(folder)[1]["state_file"]
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(WeightsError, match=r"normalizer_processor.safetensors is truncated"):
        read_pipeline(folder, processors.PREPROCESSOR)
