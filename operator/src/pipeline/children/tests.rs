use k8s_openapi::api::{
    apps::v1::Deployment,
    batch::v1::Job,
    core::v1::{ConfigMap, Secret, Service},
};
use millstream_api::{KeyspaceSpec, Topic};

use super::*;

const PIPELINE: &str = "
apiVersion: millstream.dev/v1alpha1
kind: DataPipeline
metadata: {name: users, namespace: shop, uid: 1-2-3}
spec:
  replicas: 2
  source: {generator: {count: 10}}
  schema: id UUID
  topic: {name: users_created, partitions: 2}
  deletionPolicy: Delete
  sinks:
    - name: by-id
      sql: SELECT id FROM records
      cassandra: {keyspace: spark_streams, table: users, primaryKey: {partitionKey: [id]}}
";

fn pipeline() -> DataPipeline {
    serde_saphyr::from_str(PIPELINE).unwrap()
}

fn worker() -> config::Worker {
    serde_saphyr::from_str(
        "{image: 'millstream/worker:1', imagePullPolicy: IfNotPresent, resources: {limits: {memory: 1Gi}}}",
    )
    .unwrap()
}

fn yaml(object: &Value) -> String {
    serde_saphyr::to_string(object).unwrap()
}

#[test]
fn topics() {
    let pipeline = pipeline();
    let topic = topic(&pipeline, "/id", true);
    insta::assert_snapshot!("topic", yaml(&topic));
    insta::assert_snapshot!("dead_letter_topic", yaml(&dead_letter_topic(&pipeline)));
    let read: Topic = serde_json::from_value(topic).unwrap();
    assert_eq!(read.topic_name(), "users_created");
}

#[test]
fn pods_of_a_stage() {
    let pipeline = pipeline();
    let pods = Pods {
        stage: Stage::Process,
        replicas: 2,
        worker: &worker(),
        yaml: "stage: process",
        credentials: Some("77"),
    };
    let object = deployment(&pipeline, &pods);
    insta::assert_snapshot!("process_deployment", yaml(&object));
    // What Kubernetes' own types don't know would be lost in reading it.
    let read: Deployment = serde_json::from_value(object.clone()).unwrap();
    assert_eq!(serde_json::to_value(read).unwrap(), object);
}

#[test]
fn workers_know_the_memory_of_their_containers() {
    let mut pipeline = pipeline();
    let worker = worker();
    assert_eq!(memory_limit(&pipeline, &worker), Some(1 << 30));
    pipeline.spec.resources = serde_saphyr::from_str("{limits: {memory: 300M}}").unwrap();
    assert_eq!(memory_limit(&pipeline, &worker), Some(300_000_000));
    // The pods have no limit then.
    pipeline.spec.resources = serde_saphyr::from_str("{requests: {memory: 300M}}").unwrap();
    assert_eq!(memory_limit(&pipeline, &worker), None);
}

#[test]
fn a_run() {
    let pipeline = pipeline();
    let pods = Pods {
        stage: Stage::Ingest,
        replicas: 1,
        worker: &worker(),
        yaml: "stage: ingest",
        credentials: Some("77"),
    };
    let schedule = serde_saphyr::from_str("{cron: '@daily', runFor: 1m30s}").unwrap();
    let notes = json!({AT: "2026-11-21T10:00:00Z", COUNTS: "{}"});
    let object = job(&pipeline, &pods, "users-29900000", &notes, &schedule);
    let read: Job = serde_json::from_value(object.clone()).unwrap();
    assert_eq!(serde_json::to_value(read).unwrap(), object);
    let container = &object["spec"]["template"]["spec"]["containers"][0];
    let arguments = container["args"].as_array().unwrap();
    assert_eq!(
        arguments[arguments.len() - 4..],
        ["--run", "users-29900000", "--run-for", "90"]
    );
    assert_eq!(object["spec"]["podReplacementPolicy"], "Failed");
    assert_eq!(object["metadata"]["annotations"], notes);
}

#[test]
fn the_rest_service() {
    let pipeline = pipeline();
    let pods = Pods {
        stage: Stage::Serve,
        replicas: 2,
        worker: &worker(),
        yaml: "stage: serve",
        credentials: Some("78"),
    };
    let object = deployment(&pipeline, &pods);
    let template = &object["spec"]["template"]["spec"];
    let secret = &template["volumes"][1]["secret"]["secretName"];
    assert_eq!(secret, "users-serve-credentials");
    assert_eq!(template["containers"][0]["ports"][1]["containerPort"], 8000);
    let read: Deployment = serde_json::from_value(object.clone()).unwrap();
    assert_eq!(serde_json::to_value(read).unwrap(), object);

    let object = service(&pipeline, 5001);
    insta::assert_snapshot!("service", yaml(&object));
    let read: Service = serde_json::from_value(object.clone()).unwrap();
    assert_eq!(serde_json::to_value(read).unwrap()["spec"], object["spec"]);
}

#[test]
fn without_credentials_there_is_no_secret_to_mount() {
    let pods = Pods {
        stage: Stage::Ingest,
        replicas: 1,
        worker: &worker(),
        yaml: "stage: ingest",
        credentials: None,
    };
    let object = deployment(&pipeline(), &pods);
    assert!(!object.to_string().contains("secretName"));
    assert_eq!(object["spec"]["strategy"]["type"], "Recreate");
}

#[test]
fn pods_are_replaced_when_configuration_or_secret_change() {
    let pipeline = pipeline();
    let worker = worker();
    let template = |yaml: &str, credentials: &str| {
        let pods = Pods {
            stage: Stage::Process,
            replicas: 1,
            worker: &worker,
            yaml,
            credentials: Some(credentials),
        };
        deployment(&pipeline, &pods)["spec"]["template"].to_string()
    };
    assert_eq!(template("a", "1"), template("a", "1"));
    assert_ne!(template("a", "1"), template("b", "1"));
    assert_ne!(template("a", "1"), template("a", "2"));
}

#[test]
fn a_keyspace_that_a_person_made_is_given_tables_only() {
    let pipeline = pipeline();
    let table: TableSpec = serde_saphyr::from_str(
        "{name: users, columns: [{name: id, type: uuid}], primaryKey: {partitionKey: [id]}}",
    )
    .unwrap();
    let made = keyspace(
        &pipeline,
        "spark_streams",
        None,
        std::slice::from_ref(&table),
    );
    insta::assert_snapshot!("keyspace", yaml(&made));

    let spec: KeyspaceSpec = serde_saphyr::from_str("{keyspaceName: spark_streams}").unwrap();
    let existing = Keyspace::new("ours", spec);
    let part = keyspace(&pipeline, "spark_streams", Some(&existing), &[table]);
    assert_eq!(part["metadata"]["name"], "ours");
    assert!(part["metadata"].get("ownerReferences").is_none());
    let spec: Vec<_> = part["spec"].as_object().unwrap().keys().collect();
    assert_eq!(spec, ["tables"]);
}

#[test]
fn credentials_and_configuration_are_objects_that_kubernetes_knows() {
    let pipeline = pipeline();
    let files = BTreeMap::from([("kafka-password".to_string(), "geheim".to_string())]);
    let secret: Secret =
        serde_json::from_value(credentials(&pipeline, Stage::Process, &files)).unwrap();
    let data = secret.data.unwrap();
    assert_eq!(data["kafka-password"].0, b"geheim");
    let object = config_map(&pipeline, Stage::Ingest, "stage: ingest");
    let config: ConfigMap = serde_json::from_value(object).unwrap();
    assert_eq!(config.data.unwrap()["worker.yaml"], "stage: ingest");
}

#[test]
fn a_workers_configuration_can_be_read_back() {
    let config = WorkerConfig::Ingest(millstream_api::worker::IngestConfig {
        pipeline: millstream_api::worker::PipelineRef {
            namespace: "no".into(),
            name: "1e3".into(),
        },
        kafka: serde_saphyr::from_str("{bootstrapServers: 'k:9092'}").unwrap(),
        topic: millstream_api::worker::TopicRef {
            name: "on".into(),
            id: "0x1f".into(),
            timestamp_base: 1_700_000_000_000_000,
            partitions: 4,
        },
        dead_letter_topic: "on.dead-letter".into(),
        key: vec!["/login/uuid".into()],
        source: pipeline().spec.source,
        schema: "id UUID, -- with a comment: and a colon\nname TEXT\n".into(),
        schema_registry: None,
        avro_schema_id: Some(7),
        memory_limit: None,
    });
    let config = config.limited(Some(512 << 20));
    for other in [None, Some(1 << 30)] {
        assert_eq!(config.clone().limited(other), config, "the smaller holds");
    }
    let yaml = worker_yaml(&config).unwrap();
    assert_eq!(
        serde_saphyr::from_str::<WorkerConfig>(&yaml).unwrap(),
        config
    );
}

#[test]
fn the_ingest_pod_has_the_volumes_of_its_files() {
    let mut pipeline = pipeline();
    pipeline.spec.source = serde_saphyr::from_str(
        "file: {path: /data/sessions.zip, scratchSize: 2Gi, \
           volume: {persistentVolumeClaim: {claimName: recorded}}, \
           landingZone: {volume: {persistentVolumeClaim: {claimName: landing}}}}",
    )
    .unwrap();
    let worker = worker();
    let pods = |stage| Pods {
        stage,
        replicas: 1,
        worker: &worker,
        yaml: "",
        credentials: None,
    };
    let volumes = |stage| {
        let object = deployment(&pipeline, &pods(stage));
        let read: Deployment = serde_json::from_value(object.clone()).unwrap();
        assert_eq!(serde_json::to_value(read).unwrap(), object);
        let pod = &object["spec"]["template"]["spec"];
        let mounts = pod["containers"][0]["volumeMounts"].as_array().unwrap();
        let mounts: Vec<_> = mounts[1..].iter().map(Value::to_string).collect();
        let volumes = pod["volumes"].as_array().unwrap();
        (volumes[1..].to_vec(), mounts)
    };
    let (there, mounts) = volumes(Stage::Ingest);
    assert_eq!(
        there,
        [
            json!({"name": "data", "persistentVolumeClaim": {"claimName": "recorded"}}),
            json!({"name": "landing", "persistentVolumeClaim": {"claimName": "landing"}}),
            json!({"name": "scratch", "emptyDir": {"sizeLimit": "2Gi"}}),
        ]
    );
    assert_eq!(
        mounts,
        [
            r#"{"name":"data","mountPath":"/data","readOnly":true}"#,
            r#"{"name":"landing","mountPath":"/landing"}"#,
            r#"{"name":"scratch","mountPath":"/tmp"}"#,
        ]
    );
    assert!(volumes(Stage::Process).0.is_empty());
}

#[test]
fn the_process_pod_has_the_volumes_of_its_tables() {
    let mut pipeline = pipeline();
    let sink = serde_saphyr::from_str(
        "{name: events, sql: SELECT, delta: {volume: \
           {persistentVolumeClaim: {claimName: lake}, path: r_events}}}",
    );
    pipeline.spec.sinks.push(sink.unwrap());
    let worker = worker();
    let pods = |stage| Pods {
        stage,
        replicas: 1,
        worker: &worker,
        yaml: "",
        credentials: None,
    };
    let pod = |stage| deployment(&pipeline, &pods(stage))["spec"]["template"]["spec"].clone();
    let process = pod(Stage::Process);
    // Its place among the sinks is in the name: that of a sink may be too long.
    let name = process["volumes"][1]["name"].clone();
    assert_eq!(
        process["volumes"][1],
        json!({"name": name, "persistentVolumeClaim": {"claimName": "lake"}})
    );
    assert_eq!(
        process["containers"][0]["volumeMounts"][1],
        json!({"name": name, "mountPath": "/delta/events"})
    );
    assert_eq!(pod(Stage::Ingest)["volumes"].as_array().unwrap().len(), 1);
}

#[test]
fn the_rest_service_has_the_volumes_of_the_tables_that_it_reads() {
    let mut pipeline = pipeline();
    let sink = |name: &str| {
        serde_saphyr::from_str(&format!(
            "{{name: {name}, sql: SELECT, delta: {{volume: \
               {{persistentVolumeClaim: {{claimName: lake}}, path: t}}}}}}"
        ))
        .unwrap()
    };
    pipeline.spec.sinks.push(sink("unread"));
    pipeline.spec.sinks.push(sink("event-sessions"));
    pipeline.spec.serve = serde_saphyr::from_str(
        "{endpoints: [{name: all, path: /all, sql: 'SELECT * FROM \"event-sessions\"'}, \
           {name: one, path: /one, cql: SELECT id FROM users}]}",
    )
    .unwrap();
    let worker = worker();
    let pods = Pods {
        stage: Stage::Serve,
        replicas: 1,
        worker: &worker,
        yaml: "",
        credentials: None,
    };
    let object = deployment(&pipeline, &pods);
    let read: Deployment = serde_json::from_value(object.clone()).unwrap();
    assert_eq!(serde_json::to_value(read).unwrap(), object);
    let pod = &object["spec"]["template"]["spec"];
    assert_eq!(
        pod["volumes"].as_array().unwrap()[1..],
        [json!({"name": "delta-2", "persistentVolumeClaim": {"claimName": "lake"}})]
    );
    assert_eq!(
        pod["containers"][0]["volumeMounts"].as_array().unwrap()[1..],
        [json!({"name": "delta-2", "mountPath": "/delta/event-sessions", "readOnly": true})]
    );
}

#[test]
fn the_process_pods_have_the_volumes_of_the_lookups() {
    let mut pipeline = pipeline();
    pipeline.spec.lookups = serde_saphyr::from_str(
        "[{name: sizes, cassandra: {keyspace: ks, table: sizes}}, \
          {name: all_countries, schema: code TEXT, \
           file: {path: /lookups/all_countries/c.csv, volume: {configMap: {name: countries}}}}, \
          {name: words, schema: word TEXT, file: {url: 'http://x/words.csv'}}]",
    )
    .unwrap();
    let worker = worker();
    let pods = Pods {
        stage: Stage::Process,
        replicas: 1,
        worker: &worker,
        yaml: "",
        credentials: None,
    };
    let object = deployment(&pipeline, &pods);
    let read: Deployment = serde_json::from_value(object.clone()).unwrap();
    assert_eq!(serde_json::to_value(read).unwrap(), object);
    let pod = &object["spec"]["template"]["spec"];
    assert_eq!(
        pod["volumes"].as_array().unwrap()[1..],
        [
            json!({"name": "lookup-1", "configMap": {"name": "countries"}}),
            json!({"name": "scratch", "emptyDir": {"sizeLimit": "2Gi"}}),
        ]
    );
    assert_eq!(
        pod["containers"][0]["volumeMounts"][1],
        json!({"name": "lookup-1", "mountPath": "/lookups/all_countries", "readOnly": true})
    );
}
