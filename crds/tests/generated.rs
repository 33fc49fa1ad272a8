//! The committed YAML is what the code says: `cargo xtask codegen` writes it.

use std::path::Path;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;

#[test]
fn committed_yaml_is_fresh() {
    for crd in millstream_api::custom_resource_definitions() {
        let name = format!("{}.yaml", crd.spec.names.plural);
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
        let committed = std::fs::read_to_string(&path).unwrap_or_default();
        let committed: Option<CustomResourceDefinition> = serde_saphyr::from_str(&committed).ok();
        assert_eq!(
            committed,
            Some(crd),
            "{} is stale: run `cargo xtask codegen`",
            path.display()
        );
    }
}
