//! `cargo xtask codegen`: the files that are made from the kinds in `crds/src`.
//!
//! | file | for |
//! |---|---|
//! | `crds/<plural>.yaml` | `kubectl apply -f crds/` |
//! | `charts/millstream-crds/templates/<plural>.yaml` | Helm, which upgrades templates, unlike a `crds/` folder |
//! | `docs/reference.md` | people |

mod reference;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::install::root;

const NOTICE: &str = "Generated from crds/src by `cargo xtask codegen`; do not edit.";

/// Whether to write.
#[derive(clap::Args)]
pub struct Options {
    /// Write nothing; say what is stale, and fail if something is.
    #[arg(long)]
    check: bool,
}

/// Writes the generated files, or checks them.
///
/// # Errors
/// As [`check`], or when a file can't be written.
pub fn codegen(options: &Options) -> Result<()> {
    if options.check {
        return check();
    }
    for (path, text) in stale()? {
        let at = root().join(&path);
        fs::create_dir_all(at.parent().context("a file has a folder")?)?;
        fs::write(&at, text).with_context(|| format!("writing {}", at.display()))?;
        println!("wrote {}", path.display());
    }
    Ok(())
}

/// # Errors
/// When a generated file isn't what the code says now.
pub fn check() -> Result<()> {
    let stale = stale()?;
    let paths: Vec<_> = stale
        .iter()
        .map(|(path, _)| path.display().to_string())
        .collect();
    match paths.is_empty() {
        true => Ok(()),
        false => bail!("stale: {}; run `cargo xtask codegen`", paths.join(", ")),
    }
}

/// The files that aren't what they should be, and what they should be.
fn stale() -> Result<Vec<(PathBuf, String)>> {
    let mut files = generated()?;
    files.retain(|(path, text)| {
        !fs::read_to_string(root().join(path)).is_ok_and(|old| old == *text)
    });
    Ok(files)
}

/// Paths from the project's root, and what belongs there.
fn generated() -> Result<Vec<(PathBuf, String)>> {
    let mut files = Vec::new();
    let mut definitions = Vec::new();
    for definition in millstream_api::custom_resource_definitions() {
        let file = format!("{}.yaml", definition.spec.names.plural);
        let definition = serde_json::to_value(definition)?;
        files.push((Path::new("crds").join(&file), yaml(&definition)?));
        let template = template(&definition)?;
        files.push((
            Path::new("charts/millstream-crds/templates").join(&file),
            template,
        ));
        definitions.push(definition);
    }
    files.push((
        "docs/reference.md".into(),
        reference::page(NOTICE, &definitions),
    ));
    Ok(files)
}

fn yaml(definition: &Value) -> Result<String> {
    Ok(format!(
        "# {NOTICE}\n{}",
        serde_saphyr::to_string(definition)?
    ))
}

/// The definition as a chart's template. It outlives the chart: with a definition go all its
/// resources.
fn template(definition: &Value) -> Result<String> {
    let mut definition = definition.clone();
    definition["metadata"]["annotations"] = json!({"helm.sh/resource-policy": "keep"});
    Ok(yaml(&definition)?.replace("{{", "{{ \"{{\" }}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn committed_files_are_fresh() {
        check().unwrap();
    }

    #[test]
    fn yaml_says_what_the_definition_says() {
        for definition in millstream_api::custom_resource_definitions() {
            let definition = serde_json::to_value(definition).unwrap();
            let read: Value = serde_saphyr::from_str(&yaml(&definition).unwrap()).unwrap();
            assert_eq!(read, definition);
        }
    }

    #[test]
    fn braces_mean_nothing_to_helm() {
        let definition = json!({"metadata": {}, "description": "{{ .Values }}"});
        let template = template(&definition).unwrap();
        assert!(template.contains("{{ \"{{\" }} .Values }}"), "{template}");
        assert!(template.contains("helm.sh/resource-policy"), "{template}");
    }
}
