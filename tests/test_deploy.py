"""The files of deploy/ are what those who read them expect: KubeRay, Ray's cluster launcher, Amazon's EC2, Docker."""

import copy
import json
import re
import shlex
import subprocess

import botocore.session
import botocore.validate
import jsonschema
import places
import pytest
import yaml

DEPLOY = places.REPOSITORY / "deploy"
RAYJOB = yaml.safe_load((DEPLOY / "rayjob.yaml").read_text())
CLUSTER = yaml.safe_load((DEPLOY / "cluster.yaml").read_text())
SCHEMA = json.loads((places.TESTS / "schemas" / "rayjob.json").read_text())
RAY = re.search(r"^ray==(.*)$", (places.REPOSITORY / "constraints.txt").read_text(), re.M).group(1)


def changed(tree, path, value):
    """`tree` with another value at a path such as `spec.list.0.name`."""
    made = copy.deepcopy(tree)
    *parents, last = (int(key) if key.isdigit() else key for key in path.split("."))
    node = made
    for parent in parents:
        node = node[parent]
    node[last] = value
    return made


def options_exist(command):
    import typer.main

    from raybasin.cli import app

    program, name, *arguments = shlex.split(command)
    assert program == "raybasin"
    known = {option for parameter in typer.main.get_command(app).commands[name].params for option in parameter.opts}
    assert {a for a in arguments if a.startswith("-")} <= known, command
    return arguments


def test_the_rayjob_is_one_by_kuberays_schema():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(RAYJOB, SCHEMA)


WORKERS = "spec.rayClusterSpec.workerGroupSpecs.0"


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("spec.entryPoint", "raybasin"),
        ("spec.backoffLimit", "2"),
        ("spec.rayClusterSpec.authOptions.token", True),
        ("spec.rayClusterSpec.authOptions.mode", "tokens"),
        ("spec.rayClusterSpec.autoscalerOptions.idleTimeout", 1),
        (f"{WORKERS}.minReplica", 0),
        (f"{WORKERS}.rayStartParams", {"num-cpus": 0}),
        (f"{WORKERS}.template.spec.containers.0.volumeMount", []),
        (f"{WORKERS}.template.spec.containers.0.resources.limit", {}),
        (f"{WORKERS}.template.spec.volumes.0.persistentVolumeClaim.claim", "x"),
    ],
)
def test_a_field_that_kuberay_does_not_know_is_found(path, value):
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(changed(RAYJOB, path, value), SCHEMA)


def test_the_schema_looks_at_all_that_the_rayjob_says():
    """It is cut down to that; `tests/schemas/prune.py` makes it anew."""

    def look(schema, value, path):
        assert schema, f"{path} is not looked at"
        if isinstance(value, dict):
            for key, child in value.items():
                names = schema.get("properties")
                look(names[key] if names else schema.get("additionalProperties", True), child, f"{path}.{key}")
        elif isinstance(value, list):
            for child in value:
                look(schema["items"], child, f"{path}[]")

    look(SCHEMA["properties"]["spec"], RAYJOB["spec"], "spec")


def test_the_rayjob_runs_a_sweep_of_this_ray_on_a_folder_that_all_machines_mount():
    cluster = RAYJOB["spec"]["rayClusterSpec"]
    arguments = options_exist(RAYJOB["spec"]["entrypoint"])
    assert (places.REPOSITORY / arguments[0].removeprefix("/home/ray/raybasin/")).is_file()
    assert cluster["rayVersion"] == RAY
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        [container] = group["template"]["spec"]["containers"]
        [mount] = container["volumeMounts"]
        assert arguments[arguments.index("--results") + 1].startswith(mount["mountPath"] + "/")
        assert container["resources"]["requests"] == container["resources"]["limits"]


def launched(tree):
    """A file of the cluster launcher as `ray up` sees it: its defaults filled in, by its own rules."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(tree)
    validate_config(config)
    return config


def problems_of_node(config):
    """What EC2 does not know in a machine's settings, which are the arguments of its RunInstances."""
    operation = botocore.session.get_session().get_service_model("ec2").operation_model("RunInstances")
    found = botocore.validate.ParamValidator().validate({**config, "MinCount": 1, "MaxCount": 1}, operation.input_shape)
    return found.generate_report()


def test_the_cluster_file_is_one_by_rays_schema_and_its_machines_by_that_of_ec2():
    nodes = launched(copy.deepcopy(CLUSTER))["available_node_types"]
    assert nodes["gpu"]["min_workers"] == 0
    for node in nodes.values():
        assert not problems_of_node(node["node_config"])


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("idle_minutes", 5),
        ("docker.shm", "1g"),
        ("auth.user", "ubuntu"),
        ("available_node_types.gpu.minimum", 1),
        ("available_node_types.gpu.resources", {"GPU": "1"}),
        ("head_node_type", "heads"),
    ],
)
def test_a_field_that_the_cluster_launcher_does_not_know_is_found(path, value):
    with pytest.raises((jsonschema.ValidationError, ValueError)):
        launched(changed(CLUSTER, path, value))


def test_a_field_of_a_machine_that_ec2_does_not_know_is_found():
    assert "InstanceKind" in problems_of_node({"InstanceKind": "g5.xlarge"})


def test_the_image_holds_what_is_copied_as_nobody_and_with_the_constraints():
    lines = re.sub(r"\\\n", " ", (DEPLOY / "Dockerfile").read_text()).splitlines()
    instructions = [line.split(maxsplit=1) for line in lines if line and not line.startswith("#")]
    ignored = (places.REPOSITORY / ".dockerignore").read_text().splitlines()
    copied = [name for word, rest in instructions if word == "COPY" for name in rest.split()[:-1]]
    for name in copied:
        assert (places.REPOSITORY / name).exists() and f"!{name}" in ignored
    assert {"constraints.txt", "pyproject.toml", "raybasin", "sweeps"} <= set(copied)
    assert any(word == "RUN" and "pip install" in rest and "-c constraints.txt" in rest for word, rest in instructions)
    assert [rest for word, rest in instructions if word == "USER"][-1] == "1000"


def test_the_script_for_this_machine_is_a_shells_and_says_how_it_is_called():
    script = DEPLOY / "local.sh"
    assert subprocess.run(["sh", "-n", script]).returncode == 0
    done = subprocess.run([script], capture_output=True, text=True)
    assert done.returncode == 2 and "deploy/local.sh start" in done.stdout
