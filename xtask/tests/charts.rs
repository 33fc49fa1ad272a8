//! What the charts render. Needs helm: `HELM` names it, else it is the one on the path.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::PathBuf;
use std::process::{Command, Output};

use millstream_api::worker::credentials;
use serde_json::{Value, json};

const CONNECTIONS: &[&str] = &[
    "kafka.bootstrapServers=kafka:9092",
    "kafka.sasl.credentialsSecret=kafka-user",
    "kafka.tls.enabled=true",
    "kafka.tls.caSecret=kafka-authority",
    "kafka.tls.caKey=root.pem",
    "cassandra.contactPoints[0]=cassandra:9042",
    "cassandra.datacenter=dc1",
    "cassandra.credentialsSecret=cassandra-user",
    "cassandra.tls.enabled=true",
    "schemaRegistry.url=https://registry:8081",
    "schemaRegistry.credentialsSecret=registry-user",
    "schemaRegistry.tls.enabled=true",
    "schemaRegistry.tls.caSecret=registry-authority",
    "keyspaceReplication.class=NetworkTopologyStrategy",
    "keyspaceReplication.datacenters.dc1=3",
];

/// Runs helm on a chart; `None` where there is no helm.
fn helm(command: &str, chart: &str, values: &[&str]) -> Option<Output> {
    let program = std::env::var_os("HELM").unwrap_or_else(|| "helm".into());
    let chart = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../charts")
        .join(chart);
    let mut helm = Command::new(&program);
    helm.arg(command);
    if command == "template" {
        helm.args(["millstream", "--namespace=millstream-system"]);
    }
    helm.arg(chart);
    helm.args(values.iter().flat_map(|value| ["--set", value]));
    match helm.output() {
        Ok(output) => Some(output),
        Err(error) => {
            assert!(
                std::env::var_os("HELM").is_none(),
                "{}: {error}",
                program.display()
            );
            eprintln!("skipped: no helm; set HELM, or run `cargo xtask test`");
            None
        }
    }
}

/// The rendered objects; `None` where there is no helm.
fn render(chart: &str, values: &[&str]) -> Option<Vec<Value>> {
    let output = helm("template", chart, values)?;
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let text = String::from_utf8(output.stdout).unwrap();
    let objects: Vec<Value> = serde_saphyr::from_multiple(&text).unwrap();
    Some(
        objects
            .into_iter()
            .filter(|object| !object.is_null())
            .collect(),
    )
}

fn find<'a>(objects: &'a [Value], kind: &str) -> &'a Value {
    let mut found = objects.iter().filter(|object| object["kind"] == kind);
    let object = found.next().unwrap_or_else(|| panic!("no {kind}"));
    assert!(found.next().is_none(), "more than one {kind}");
    object
}

fn array(value: &Value) -> &Vec<Value> {
    value
        .as_array()
        .unwrap_or_else(|| panic!("{value} is no array"))
}

/// The one of the list with this name.
fn named<'a>(list: &'a Value, name: &str) -> &'a Value {
    let found = array(list).iter().find(|item| item["name"] == name);
    found.unwrap_or_else(|| panic!("no {name} in {list}"))
}

fn pod(objects: &[Value]) -> &Value {
    &find(objects, "Deployment")["spec"]["template"]["spec"]
}

fn operator_config(objects: &[Value]) -> Value {
    let config = find(objects, "ConfigMap")["data"]["operator.yaml"]
        .as_str()
        .unwrap();
    serde_saphyr::from_str(config).unwrap()
}

#[test]
fn there_is_one_version() {
    let version = env!("CARGO_PKG_VERSION");
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..");
    for chart in ["millstream", "millstream-crds"] {
        let chart = root.join("charts").join(chart).join("Chart.yaml");
        let chart: Value =
            serde_saphyr::from_str(&std::fs::read_to_string(chart).unwrap()).unwrap();
        assert_eq!(
            (&chart["version"], &chart["appVersion"]),
            (&json!(version), &json!(version))
        );
    }
    let apis = std::fs::read_to_string(root.join("examples/apis/deploy.yaml")).unwrap();
    assert!(
        apis.contains(&format!("image: millstream/apis:{version}\n")),
        "{apis}"
    );
}

#[test]
fn lint_finds_nothing() {
    for chart in ["millstream", "millstream-crds"] {
        let Some(output) = helm("lint", chart, &[]) else {
            return;
        };
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success() && !said.contains("WARNING"),
            "{said}"
        );
    }
}

#[test]
fn the_operator_may_do_what_it_needs_and_no_more() {
    let Some(objects) = render("millstream", &[]) else {
        return;
    };
    let bound = &find(&objects, "ClusterRoleBinding")["roleRef"]["name"];
    let roles = objects
        .iter()
        .filter(|object| object["kind"] == "ClusterRole");
    let (own, others): (Vec<_>, Vec<_>) =
        roles.partition(|role| role["metadata"]["name"] == *bound);
    let rules = &own[0]["rules"];
    let all = rules.to_string();
    for forbidden in [
        "*",
        "escalate",
        "bind",
        "impersonate",
        "deletecollection",
        "pods/exec",
    ] {
        assert!(!all.contains(&format!("\"{forbidden}\"")), "{forbidden}");
    }
    let names_secrets = |rule: &&Value| array(&rule["resources"]).contains(&json!("secrets"));
    let secrets: Vec<_> = array(rules).iter().filter(names_secrets).collect();
    assert_eq!(secrets.len(), 1);
    assert_eq!(secrets[0]["resources"], json!(["secrets"]));
    assert_eq!(secrets[0]["verbs"], json!(["get", "create", "patch"]));

    let subject = &find(&objects, "ClusterRoleBinding")["subjects"][0];
    let account = &find(&objects, "ServiceAccount")["metadata"]["name"];
    assert_eq!(&subject["name"], account);
    assert_eq!(subject["namespace"], "millstream-system");
    assert_eq!(&pod(&objects)["serviceAccountName"], account);

    let lease = &find(&objects, "Role")["rules"];
    assert_eq!(lease[1]["resourceNames"], json!(["millstream-operator"]));
    let namespace = json!("--lease-namespace=millstream-system");
    assert!(array(&pod(&objects)["containers"][0]["args"]).contains(&namespace));

    // For people: what they may view includes the resources.
    assert_eq!(others.len(), 1);
    let label = "rbac.authorization.k8s.io/aggregate-to-view";
    assert_eq!(others[0]["metadata"]["labels"][label], "true");
    assert_eq!(
        others[0]["rules"][0]["verbs"],
        json!(["get", "list", "watch"])
    );
}

#[test]
fn an_account_that_is_there_already_is_taken() {
    let values = ["serviceAccount.create=false", "serviceAccount.name=mine"];
    let Some(objects) = render("millstream", &values) else {
        return;
    };
    assert!(
        objects
            .iter()
            .all(|object| object["kind"] != "ServiceAccount")
    );
    assert_eq!(pod(&objects)["serviceAccountName"], "mine");

    // As with the values of a release that knew no such value.
    let Some(objects) = render("millstream", &["serviceAccount.create=null"]) else {
        return;
    };
    find(&objects, "ServiceAccount");
}

#[test]
fn the_pod_keeps_to_the_restricted_standard() {
    let Some(objects) = render("millstream", CONNECTIONS) else {
        return;
    };
    let pod = pod(&objects);
    assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
    assert_eq!(
        pod["securityContext"]["seccompProfile"]["type"],
        "RuntimeDefault"
    );
    for container in array(&pod["containers"]) {
        let security = &container["securityContext"];
        assert_eq!(security["allowPrivilegeEscalation"], false);
        assert_eq!(security["readOnlyRootFilesystem"], true);
        assert_eq!(security["capabilities"], json!({"drop": ["ALL"]}));
        assert!(container["resources"]["limits"]["memory"].is_string());
        assert!(container["livenessProbe"].is_object() && container["readinessProbe"].is_object());
    }
    for volume in array(&pod["volumes"]) {
        let kinds = volume.as_object().unwrap().keys();
        let kinds: Vec<_> = kinds.filter(|key| *key != "name").collect();
        assert!(kinds == ["configMap"] || kinds == ["projected"], "{volume}");
    }
}

#[test]
fn credentials_are_mounted_under_the_names_that_the_operator_reads() {
    let Some(objects) = render("millstream", CONNECTIONS) else {
        return;
    };
    let pod = pod(&objects);
    let volume = &named(&pod["volumes"], "credentials")["projected"];
    let mut mounted = Vec::new();
    for source in array(&volume["sources"]) {
        let secret = &source["secret"];
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let items = array(&secret["items"]).iter();
        mounted.extend(items.map(|item| [&secret["name"], &item["key"], &item["path"]].map(text)));
        assert_eq!(secret["optional"], true);
    }
    assert_eq!(
        mounted,
        [
            ["kafka-user", "username", credentials::KAFKA_USERNAME],
            ["kafka-user", "password", credentials::KAFKA_PASSWORD],
            ["kafka-authority", "root.pem", credentials::KAFKA_CA],
            [
                "cassandra-user",
                "username",
                credentials::CASSANDRA_USERNAME
            ],
            [
                "cassandra-user",
                "password",
                credentials::CASSANDRA_PASSWORD
            ],
            ["registry-user", "username", credentials::REGISTRY_USERNAME],
            ["registry-user", "password", credentials::REGISTRY_PASSWORD],
            ["registry-authority", "ca.crt", credentials::REGISTRY_CA],
        ]
    );
    let container = &pod["containers"][0];
    let folder = &named(&container["volumeMounts"], "credentials")["mountPath"];
    let argument = format!("--credentials-dir={}", folder.as_str().unwrap());
    assert!(array(&container["args"]).contains(&json!(argument)));
}

#[test]
fn the_configuration_names_the_connections() {
    let Some(objects) = render("millstream", CONNECTIONS) else {
        return;
    };
    let config = operator_config(&objects);
    let kafka = config["kafka"].clone();
    let kafka: millstream_api::KafkaConnection = serde_json::from_value(kafka).unwrap();
    assert_eq!(kafka.bootstrap_servers, "kafka:9092");
    assert_eq!(kafka.sasl.unwrap().credentials_secret.name, "kafka-user");
    assert_eq!(kafka.tls.unwrap().ca_secret.unwrap().key, "root.pem");
    let cassandra = config["cassandra"].clone();
    let cassandra: millstream_api::CassandraConnection = serde_json::from_value(cassandra).unwrap();
    assert_eq!(cassandra.contact_points, ["cassandra:9042"]);
    assert_eq!(cassandra.datacenter.as_deref(), Some("dc1"));
    assert_eq!(cassandra.tls, Some(Default::default()));
    let registry = config["schemaRegistry"].clone();
    let registry: millstream_api::SchemaRegistryConnection =
        serde_json::from_value(registry).unwrap();
    assert_eq!(registry.url, "https://registry:8081");
    assert_eq!(registry.credentials_secret.unwrap().name, "registry-user");
    assert_eq!(registry.tls.unwrap().ca_secret.unwrap().key, "ca.crt");
    let replication = config["keyspaceReplication"].clone();
    let replication: millstream_api::keyspace::Replication =
        serde_json::from_value(replication).unwrap();
    assert_eq!(replication.datacenters.unwrap()["dc1"], 3);
}

#[test]
fn without_values_there_are_no_connections_and_no_credentials() {
    let Some(objects) = render("millstream", &[]) else {
        return;
    };
    let config = operator_config(&objects);
    assert_eq!(
        config.as_object().unwrap().keys().collect::<Vec<_>>(),
        ["worker"]
    );
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(
        config["worker"]["image"],
        format!("millstream/worker:{version}")
    );
    let pod = pod(&objects);
    assert_eq!(
        pod["containers"][0]["image"],
        format!("millstream/operator:{version}")
    );
    let volume = named(&pod["volumes"], "credentials");
    assert_eq!(volume["projected"]["sources"], json!([]));
}

#[test]
fn another_configuration_rolls_the_pod() {
    let checksum = |values: &[&str]| {
        let objects = render("millstream", values)?;
        let template = &find(&objects, "Deployment")["spec"]["template"];
        Some(template["metadata"]["annotations"]["checksum/config"].to_string())
    };
    let Some(before) = checksum(&[]) else {
        return;
    };
    assert_ne!(before, checksum(CONNECTIONS).unwrap());
    assert_eq!(before, checksum(&[]).unwrap());
}

#[test]
fn wrong_values_are_refused() {
    for (value, names) in [
        ("kafka.bootstrapServer=kafka:9092", "bootstrapServer"),
        ("kafka.bootstrapServers=kafka", "bootstrapServers"),
        ("kafka.sasl.mechanism=GSSAPI", "mechanism"),
        ("image.worker.tag=latest", "tag"),
        (
            "keyspaceReplication.class=SimpleStrategy",
            "keyspaceReplication",
        ),
        ("resync=often", "resync"),
        ("resync=500ms", "resync"),
        ("kafka.tls.caSecret=authority", "enabled"),
        ("serviceAccount.create=false", "/serviceAccount/name"),
    ] {
        let Some(output) = helm("template", "millstream", &[value]) else {
            return;
        };
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(
            !output.status.success() && said.contains(names),
            "{value}: {said}"
        );
    }
}

#[test]
fn definitions_are_upgraded_and_outlive_the_chart() {
    let Some(mut objects) = render("millstream-crds", &[]) else {
        return;
    };
    assert_eq!(objects.len(), 3);
    for object in &mut objects {
        let metadata = object["metadata"].as_object_mut().unwrap();
        let annotations = metadata.shift_remove("annotations");
        assert_eq!(
            annotations,
            Some(json!({"helm.sh/resource-policy": "keep"}))
        );
        let plural = object["spec"]["names"]["plural"].as_str().unwrap();
        let file = format!("{}/../crds/{plural}.yaml", env!("CARGO_MANIFEST_DIR"));
        let plain: Value = serde_saphyr::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
        assert_eq!(object, &plain);
    }
}
