//! What may tell why a test failed, printed before its namespace goes.

use crate::{Namespace, OPERATOR_NAMESPACE};

/// Prints events, resources with their conditions, pods and logs.
pub(crate) async fn print(namespace: &Namespace) {
    let own = namespace.name.as_str();
    let looks: [(&str, &[&str]); 6] = [
        (
            own,
            &["get", "datapipelines,topics,keyspaces", "-o", "yaml"],
        ),
        (own, &["get", "deployments,pods", "-o", "wide"]),
        (own, &["describe", "pods"]),
        (
            own,
            &[
                "logs",
                "--selector",
                "millstream.dev/pipeline",
                "--all-containers",
                "--prefix",
                "--tail",
                "60",
            ],
        ),
        (own, &["get", "events", "--sort-by", ".lastTimestamp"]),
        (
            OPERATOR_NAMESPACE,
            &[
                "logs",
                "--selector",
                "app.kubernetes.io/name=millstream",
                "--prefix",
                "--tail",
                "80",
            ],
        ),
    ];
    for (namespace_name, arguments) in looks {
        eprintln!("\n==> kubectl -n {namespace_name} {}", arguments.join(" "));
        let arguments = [&["--namespace", namespace_name], arguments].concat();
        match namespace.environment.kubectl(&arguments, "").await {
            Ok(outcome) => eprintln!("{}{}", outcome.stdout, outcome.stderr),
            Err(error) => eprintln!("{error:?}"),
        }
    }
}
