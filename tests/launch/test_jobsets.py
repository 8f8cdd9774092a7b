"""The JobSets fit their published schema, end or restart where they should, and train what their devices take."""

import functools
import re
import runpy
from operator import getitem

import jsonschema
import pytest
import yaml
from jax.sharding import AbstractMesh
from kubeflow_trainer_api.models.jobset_v1alpha2_job_set import JobsetV1alpha2JobSet

from jpeglm.core import distributed, sharding
from jpeglm.core.cli import EXIT_BAD_INPUT
from jpeglm.models import networks
from jpeglm.models.llama import LlamaConfig
from tests.commands import ROOT

JOBSETS = [*ROOT.glob("launch/*.yaml")]


@pytest.fixture(scope="module")
def judge() -> jsonschema.Draft202012Validator:
    """Of JobSets, by their published types. A field that these do not have is an error: Kubernetes would drop it."""
    schema = JobsetV1alpha2JobSet.model_json_schema()
    for kind in (schema, *schema["$defs"].values()):
        if "actual_instance" in kind["properties"]:  # quantities, and numbers or strings
            kind.clear()
            kind["type"] = ["number", "string"]
        else:
            kind["additionalProperties"] = False
    return jsonschema.Draft202012Validator(schema)


@pytest.mark.parametrize("path", JOBSETS, ids=lambda path: path.name)
def test_jobsets_fit_their_schema(judge, path):
    assert not [f"{error.json_path}: {error.message}" for error in judge.iter_errors(yaml.safe_load(path.read_text()))]


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        ("  failurePolicy:", "  failurePolicies:"),
        ("maxRestarts: 100", "maxRestart: 100"),
        ("maxRestarts: 100", "maxRestarts: many"),
        ("backoffLimit: 0", "backofflimit: 0"),
        ("terminationGracePeriodSeconds: 600", "terminationGracePeriodSeconds: 10m"),
        ("google.com/tpu: 4", "google.com/tpu: [4]"),
        ("values: [1, 2]", "values: 1"),
        ("name: train", "Name: train"),
        ("mountPath: /data", "mountpath: /data"),
        ("action: FailJobSet", "actions: FailJobSet"),
        ("bucketName: BUCKET", "bucketName: 7"),
    ],
)
def test_a_jobset_that_does_not_fit_is_noticed(judge, good, bad):
    text = (ROOT / "launch" / "gke_jobset.yaml").read_text()
    assert good in text
    assert not judge.is_valid(yaml.safe_load(text.replace(good, bad)))


@pytest.mark.parametrize("path", JOBSETS, ids=lambda path: path.name)
def test_a_jobset_ends_where_the_same_command_would_end_the_same_way_and_else_restarts(path):
    """By what JobSet's and Kubernetes' documentation say of these fields: no cluster is asked."""
    jobset = yaml.safe_load(path.read_text())
    [rule] = jobset["spec"]["failurePolicy"]["rules"]
    assert (rule["action"], rule["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])
    [replicated] = jobset["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    assert job["backoffLimit"] == 0 and job["completionMode"] == "Indexed"
    assert job["parallelism"] == job["completions"]
    disrupted, ended = job["podFailurePolicy"]["rules"]
    assert disrupted["action"] == "Count" and disrupted["onPodConditions"][0]["type"] == "DisruptionTarget"
    assert ended["action"] == "FailJob" and ended["onExitCodes"]["operator"] == "In"
    assert set(ended["onExitCodes"]["values"]) == {1, EXIT_BAD_INPUT}
    pod = job["template"]["spec"]
    [container] = pod["containers"]
    assert pod["restartPolicy"] == "Never" and ended["onExitCodes"]["containerName"] == container["name"]
    for mount in container["volumeMounts"]:
        assert mount["name"] in [volume["name"] for volume in pod["volumes"]]
    for variable in container.get("env", []):
        if variable["name"] == "JAX_NUM_PROCESSES":
            assert variable["value"] == str(job["completions"])
        if variable["name"] == "JAX_COORDINATOR_ADDRESS":
            name = jobset["metadata"]["name"]
            assert variable["value"].startswith(f"{name}-{replicated['name']}-0-0.{name}:")


@pytest.mark.parametrize("path", JOBSETS, ids=lambda path: path.name)
def test_the_flags_of_a_jobset_are_those_of_its_config(path):
    [replicated] = yaml.safe_load(path.read_text())["spec"]["replicatedJobs"]
    [container] = replicated["template"]["spec"]["template"]["spec"]["containers"]
    module, *flags = container["args"]
    assert module == "jpeglm.train"
    values = dict(flag.removeprefix("--").split("=", 1) for flag in flags)
    config = runpy.run_path(ROOT / values.pop("config"))["get_config"]()
    assert values.pop("workdir").startswith("gs://")
    assert values.pop("config.platform") in distributed.PLATFORMS
    for key in values:
        functools.reduce(getitem, key.split(".")[1:], config)


@pytest.mark.parametrize("path", JOBSETS, ids=lambda path: path.name)
def test_the_batch_of_a_jobset_divides_over_its_devices(path):
    [replicated] = yaml.safe_load(path.read_text())["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    [container] = job["template"]["spec"]["containers"]
    [each] = container["resources"]["limits"].values()
    [file] = [flag.removeprefix("--config=") for flag in container["args"] if flag.startswith("--config=")]
    config = runpy.run_path(ROOT / file)["get_config"]()
    devices = replicated["replicas"] * job["completions"] * each
    shape = sharding.mesh_shape(config.mesh, devices)
    sharding.check_divides(config, AbstractMesh(tuple(shape), sharding.MESH_AXES))


CONFIGS = [*ROOT.glob("configs/*.py")]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_a_config_trains_on_each_number_of_devices_that_divides_its_batch(path):
    config = runpy.run_path(ROOT / path)["get_config"]()
    abstract = networks.abstract(LlamaConfig.of(config))[1]
    for devices in sharding.microbatches_that_fit(config.optim.batch_size, 1):
        mesh = AbstractMesh(tuple(sharding.mesh_shape(config.mesh, devices)), sharding.MESH_AXES)
        sharding.check_divides(config, mesh)
        sharding.parameter_shardings(abstract, mesh)


def test_what_the_slurm_script_shows_divides():
    text = (ROOT / "launch" / "slurm.sbatch").read_text()
    nodes, file = re.search(r"sbatch --nodes=(\d+) \S+ --config=(\S+)", text).groups()
    each = re.search(r"#SBATCH --gpus-per-node=(\d+)", text)[1]
    config = runpy.run_path(ROOT / file)["get_config"]()
    assert config.optim.batch_size % (config.optim.accumulate * int(nodes) * int(each)) == 0
