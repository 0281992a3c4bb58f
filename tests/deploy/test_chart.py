"""The Helm chart: helm itself renders it, and what comes out is what Kubernetes takes, field by field.

helm is build/tools/bin/helm (make build/tools/bin/helm), or one on the PATH.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from app.engine.watchdog import LOOK_S, TELL_S
from app.settings import PREFIX, Settings, SettingsRefused, read_settings
from deploy.helm.write_schema import FIXED, KEYS, SCHEMA, settings_schema

ROOT = Path(__file__).parent.parent.parent
CHART = SCHEMA.parent
HELM = shutil.which(ROOT / "build/tools/bin/helm") or shutil.which("helm")
OPERATORS = {"ServiceMonitor"}  # of Prometheus' operator: Kubernetes has no schema of it

Json = dict[str, Any]
ALL = {
    "ingress": {"enabled": True, "host": "a.example", "className": "nginx", "tlsSecret": "tls"},
    "networkPolicy": {"enabled": True, "from": [{"podSelector": {}}]},
    "podDisruptionBudget": {"enabled": True},
    "serviceMonitor": {
        "enabled": True,
        "labels": {"release": "prometheus"},
        "authorization": {"credentials": {"name": "scrape", "key": "key"}},
    },
    "keys": {"api": "k name=team", "admin": "a"},
    "gpu": {"count": 1, "runtimeClassName": "nvidia"},
    "adapters": {"volume": {"persistentVolumeClaim": {"claimName": "a", "readOnly": True}}},
    "volumes": [{"name": "base", "hostPath": {"path": "/models"}}],
    "volumeMounts": [{"name": "base", "mountPath": "/models", "readOnly": True}],
    "env": [{"name": "HF_TOKEN", "value": "t"}],
    "imagePullSecrets": [{"name": "pull"}],
    "serviceAccountName": "serve",
    "priorityClassName": "high",
    "podLabels": {"team": "a"},
    "podAnnotations": {"note": "b"},
    "nodeSelector": {"disk": "ssd"},
    "tolerations": [{"key": "spot", "operator": "Exists"}],
    "affinity": {"nodeAffinity": {}},
    "service": {"annotations": {"a": "b"}},
}
MANY = {
    "store": {"kind": "emptyDir"},
    "autoscaling": {"enabled": True},
    "keys": {"existingSecret": "mine", "existingEntries": {"api": "clients", "admin": ""}},
}

BUCKET = {
    "replicas": 3,
    "store": {"kind": "bucket", "bucket": "s3://models/bert", "credentialsSecret": "bucket"},
    "keys": {"admin": "a"},
    "podDisruptionBudget": {"enabled": True},
    "service": {"headless": True},
}

needs_helm = pytest.mark.skipif(
    HELM is None, reason="helm is not there: make build/tools/bin/helm (Linux on x86-64)"
)


def helm(*arguments: str, values: Json | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(HELM), *arguments, str(CHART), "--values", "-"],
        input=json.dumps(values or {}),
        capture_output=True,
        text=True,
        check=False,
    )


def rendered(values: Json | None = None, release: str = "r") -> dict[str, Json]:
    """The chart's objects by kind."""
    done = helm("template", release, values=values)
    assert done.returncode == 0, done.stderr
    objects = [o for o in yaml.safe_load_all(done.stdout) if o]
    assert len({o["kind"] for o in objects}) == len(objects)
    return {o["kind"]: o for o in objects}


def pod(values: Json | None = None) -> Json:
    return dict(rendered(values)["Deployment"]["spec"]["template"]["spec"])


def environ(values: Json | None = None) -> dict[str, str]:
    (server,) = pod(values)["containers"]
    return {e["name"]: e["value"] for e in server["env"]}


def refusal(values: Json) -> str:
    done = helm("template", "r", values=values)
    assert done.returncode != 0
    return done.stderr


def test_the_schema_has_the_settings_as_the_server_has_them() -> None:
    """Else: python -m deploy.helm.write_schema."""
    assert json.loads(SCHEMA.read_text())["properties"]["settings"] == settings_schema()


def test_the_schema_knows_every_value_and_no_other() -> None:
    def compare(schema: Json, value: Any) -> None:
        if schema.get("additionalProperties") is False and schema.get("required") is None:
            assert schema["properties"].keys() - {"global"} == value.keys()
            for name, inner in value.items():
                compare(schema["properties"][name], inner)

    compare(json.loads(SCHEMA.read_text()), yaml.safe_load((CHART / "values.yaml").read_text()))


def test_the_chart_has_the_servers_version_and_defaults() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"] == project["version"]
    values = yaml.safe_load((CHART / "values.yaml").read_text())["settings"]
    assert Settings(**values) == Settings(drain_delay=5)


@needs_helm
@pytest.mark.parametrize(
    "values", [{}, ALL, MANY, BUCKET], ids=["defaults", "all", "many replicas", "a bucket"]
)
def test_helm_lints_it_and_kubernetes_takes_every_object(values: Json) -> None:
    done = helm("lint", "--strict", values=values)
    assert done.returncode == 0, done.stdout + done.stderr
    for kind, made in rendered(values).items():
        if kind not in OPERATORS:
            kubernetes_validate.validate(made, "1.34", strict=True)


@needs_helm
def test_an_object_that_kubernetes_does_not_know_is_told() -> None:
    made = rendered()["Deployment"]
    made["spec"]["template"]["spec"]["enableServiceLink"] = False
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(made, "1.34", strict=True)


@needs_helm
def test_each_part_can_be_had_and_none_comes_unasked() -> None:
    assert rendered().keys() == {"Deployment", "Service", "PersistentVolumeClaim"}
    optional = {"Ingress", "NetworkPolicy", "PodDisruptionBudget", "ServiceMonitor", "Secret"}
    assert rendered(ALL).keys() == rendered().keys() | optional
    assert rendered(MANY).keys() == {"Deployment", "Service", "HorizontalPodAutoscaler"}


@needs_helm
def test_every_setting_reaches_the_server_as_it_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted: Json = {
        "model": "org/model",
        "device": "cuda:1",
        "max_queue_tokens": 16_777_216,
        "adapter_memory_bytes": 1 << 40,
        "drain_delay": 0,
        "drain_seconds": 2.5,
        "allow_hub": True,
        "log_format": "json",
    }
    for name, value in environ({"settings": wanted}).items():
        monkeypatch.setenv(name, value)
    assert read_settings({}) == Settings(**wanted)


@needs_helm
def test_a_value_that_is_unknown_or_impossible_is_refused_by_name() -> None:
    assert "'max_batch_token' not allowed" in refusal({"settings": {"max_batch_token": 5}})
    assert "/settings/keep_versions" in refusal({"settings": {"keep_versions": 0}})
    assert "'replica' not allowed" in refusal({"replica": 1})
    assert "drain_delay" in refusal({"settings": {"drain_delay": None}})
    for name in FIXED | KEYS:
        assert f"'{name}' not allowed" in refusal({"settings": {name: "a"}})


@needs_helm
def test_a_service_named_bert_lora_does_not_keep_the_server_from_starting() -> None:
    """Kubernetes' service links are variables that begin as the settings do."""
    links = {"BERT_LORA_PORT": "tcp://10.0.0.1:8080", "BERT_LORA_SERVICE_HOST": "10.0.0.1"}
    with pytest.raises(SettingsRefused, match="BERT_LORA_SERVICE_HOST"):
        read_settings({}, links)
    assert pod()["enableServiceLinks"] is False


@needs_helm
def test_several_replicas_are_refused_where_they_would_differ() -> None:
    assert "store has one owner" in refusal({"replicas": 2})
    assert "store has one owner" in refusal({"autoscaling": {"enabled": True}})
    assert "no admin keys" in refusal(
        {"replicas": 2, "store": {"kind": "emptyDir"}, "keys": {"admin": "a"}}
    )
    assert "give either" in refusal({"keys": {"existingSecret": "mine", "api": "a"}})
    several = rendered({"replicas": 2, "store": {"kind": "emptyDir"}})["Deployment"]["spec"]
    assert (several["replicas"], several["strategy"]["type"]) == (2, "RollingUpdate")
    one = rendered()["Deployment"]["spec"]
    assert (one["replicas"], one["strategy"]["type"]) == (1, "Recreate")
    assert "replicas" not in rendered(MANY)["Deployment"]["spec"]


@needs_helm
def test_replicas_share_a_bucket_and_keep_no_claim() -> None:
    objects = rendered(BUCKET)
    assert objects.keys() == {"Deployment", "Service", "Secret", "PodDisruptionBudget"}
    spec = objects["Deployment"]["spec"]
    assert spec["replicas"] == 3
    assert environ(BUCKET)[f"{PREFIX}STORE"] == "s3://models/bert"
    (server,) = pod(BUCKET)["containers"]
    assert server["envFrom"] == [{"secretRef": {"name": "bucket"}}]
    store = next(v for v in pod(BUCKET)["volumes"] if v["name"] == "store")
    assert store["emptyDir"] == {"sizeLimit": "10Gi"}
    assert objects["Service"]["spec"]["clusterIP"] == "None"


@needs_helm
def test_the_cache_of_a_bucket_lies_in_the_pods_volume_and_fits() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text()
    (cache,) = re.findall(r"BERT_LORA_CACHE_DIR=(\S+)", dockerfile)
    (server,) = pod(BUCKET)["containers"]
    assert any(cache.startswith(m["mountPath"] + "/") for m in server["volumeMounts"])
    size = yaml.safe_load((CHART / "values.yaml").read_text())["store"]["size"]
    assert (
        int(size.removesuffix("Gi")) << 30 > Settings().cache_bytes + Settings().max_adapter_bytes
    )


@needs_helm
def test_where_a_cloud_knows_the_pod_no_secret_is_asked_for() -> None:
    values = {"store": {"kind": "bucket", "bucket": "gs://models"}, "serviceAccountName": "reads"}
    made = pod(values)
    assert made["serviceAccountName"] == "reads"
    assert "envFrom" not in made["containers"][0]


@needs_helm
def test_an_update_takes_no_pod_away_before_its_successor_is_ready() -> None:
    for values in (MANY, BUCKET):
        strategy = rendered(values)["Deployment"]["spec"]["strategy"]
        assert strategy["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}


@needs_helm
def test_rate_limits_are_divided_by_as_many_replicas_as_there_may_be() -> None:
    name = f"{PREFIX}REPLICAS"
    assert environ(BUCKET)[name] == "3"
    scaled = {**BUCKET, "autoscaling": {"enabled": True, "maxReplicas": 7}}
    assert environ(scaled)[name] == "7"
    assert environ({**scaled, "settings": {"replicas": 2}})[name] == "2"
    assert name not in environ()


@needs_helm
def test_a_bucket_is_refused_where_it_is_half_said_or_folders_would_not_be_watched() -> None:
    assert "go together" in refusal({"store": {"kind": "bucket"}})
    assert "go together" in refusal({"store": {"bucket": "s3://a"}})
    assert "/store/bucket" in refusal({"store": {"kind": "bucket", "bucket": "/data"}})
    assert "bert-lora push" in refusal({**BUCKET, "adapters": ALL["adapters"]})


@needs_helm
def test_the_pods_times_fit_the_servers() -> None:
    for settings in ({}, {"drain_delay": 20, "drain_seconds": 120.5, "max_forward_seconds": 300}):
        made = pod({"settings": settings})
        (server,) = made["containers"]
        of = Settings(**{"drain_delay": 5, **settings})
        grace = made["terminationGracePeriodSeconds"]
        assert of.drain_delay + of.drain_seconds + 10 <= grace <= of.drain_seconds + 60
        live, ready = server["livenessProbe"], server["readinessProbe"]
        alive_s = live["periodSeconds"] * live["failureThreshold"]
        assert alive_s > of.max_forward_seconds + LOOK_S + TELL_S
        assert ready["periodSeconds"] * ready["failureThreshold"] < of.drain_delay
        paths = [p["httpGet"]["path"] for p in (server["startupProbe"], ready, live)]
        assert paths == ["/readyz", "/readyz", "/livez"]
    start = pod({"probes": {"startSeconds": 31}})["containers"][0]["startupProbe"]
    assert start["periodSeconds"] * start["failureThreshold"] == 32


@needs_helm
def test_the_pod_may_do_what_composes_container_may_and_no_more() -> None:
    made = pod()
    (server,) = made["containers"]
    uid = int(re.findall(r"^USER (\d+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE)[0])
    assert made["securityContext"]["runAsUser"] == made["securityContext"]["fsGroup"] == uid
    assert made["securityContext"]["runAsNonRoot"] is True
    assert made["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert server["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert made["automountServiceAccountToken"] is False
    mounts = {m["mountPath"]: m["name"] for m in server["volumeMounts"]}
    volumes = {v.pop("name"): v for v in made["volumes"]}
    assert volumes[mounts["/tmp"]] == {"emptyDir": {}}
    claim = rendered()["PersistentVolumeClaim"]
    assert volumes[mounts["/data"]] == {
        "persistentVolumeClaim": {"claimName": claim["metadata"]["name"]}
    }
    assert claim["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"


@needs_helm
def test_an_existing_claim_is_taken_and_none_is_made() -> None:
    values = {"store": {"existingClaim": "old"}}
    assert "PersistentVolumeClaim" not in rendered(values)
    store = next(v for v in pod(values)["volumes"] if v["name"] == "store")
    assert store["persistentVolumeClaim"]["claimName"] == "old"


@needs_helm
def test_keys_come_from_the_secret_as_files() -> None:
    folder = "/etc/bert-lora/keys"
    made = environ({"keys": {"api": "k", "admin": "a"}})
    assert made[f"{PREFIX}API_KEYS_FILE"] == f"{folder}/api-keys"
    assert made[f"{PREFIX}ADMIN_KEYS_FILE"] == f"{folder}/admin-keys"
    secret = rendered({"keys": {"api": "k", "admin": "a"}}, release="x")["Secret"]
    assert secret["stringData"] == {"api-keys": "k", "admin-keys": "a"}
    existing = environ(MANY)
    assert existing[f"{PREFIX}API_KEYS_FILE"] == f"{folder}/clients"
    assert f"{PREFIX}ADMIN_KEYS_FILE" not in existing
    volume = next(v for v in pod(MANY)["volumes"] if v["name"] == "keys")
    assert volume["secret"]["secretName"] == "mine"
    assert not any(v["name"] == "keys" for v in pod()["volumes"])


@needs_helm
def test_a_gpu_is_asked_for_and_its_nodes_taint_is_borne() -> None:
    made = pod(ALL)
    assert made["containers"][0]["resources"]["limits"] == {"memory": "4Gi", "nvidia.com/gpu": 1}
    assert made["runtimeClassName"] == "nvidia"
    assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in made[
        "tolerations"
    ]
    assert "nvidia.com/gpu" not in pod()["containers"][0]["resources"]["limits"]


@needs_helm
def test_the_service_and_the_policies_select_the_pod() -> None:
    objects = rendered(ALL)
    labels = objects["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert labels.items() >= objects["Service"]["spec"]["selector"].items()
    for kind, where in [("NetworkPolicy", "podSelector"), ("PodDisruptionBudget", "selector")]:
        assert labels.items() >= objects[kind]["spec"][where]["matchLabels"].items()
    monitored = objects["ServiceMonitor"]["spec"]["selector"]["matchLabels"]
    assert objects["Service"]["metadata"]["labels"].items() >= monitored.items()
    assert objects["NetworkPolicy"]["spec"]["egress"] == []


@needs_helm
def test_the_notes_have_a_curl_line_with_a_key_where_one_is_needed() -> None:
    bucket = {"store": {"kind": "bucket", "bucket": "s3://a"}}
    for values, keyed in (({}, False), ({"keys": {"api": "k"}}, True), (bucket, False)):
        done = helm("install", "--dry-run=client", "r", values=values)
        assert done.returncode == 0, done.stderr
        notes = done.stdout.partition("NOTES:")[2]
        (line,) = re.findall(r"curl .*", notes)
        assert ("$KEY" in line) == keyed
        assert "Nobody may change adapters" in notes
        assert ("adapter=" in line) == (values != bucket)  # in a new bucket there is none
