//! Which provider a command is for.
//!
//! The name of the one that `up` took is kept beside the run folder: the providers share that folder,
//! and what a killed `up` has started only its own provider can end.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use super::{ProviderName, kind};
use crate::cache;

/// The one asked for; else the one that is up; else the one that this machine can run.
pub(super) fn choose(asked: Option<ProviderName>) -> Result<ProviderName> {
    let recorded = recorded(&cache::root()?)?;
    let missing = kind::missing_programs();
    pick(asked, recorded, kind::engine_answers, &missing)
}

/// `engine` is asked last: an answer may take seconds.
fn pick(
    asked: Option<ProviderName>,
    recorded: Option<ProviderName>,
    engine: impl FnOnce() -> bool,
    missing: &[&str],
) -> Result<ProviderName> {
    if let (Some(asked), Some(recorded)) = (asked, recorded)
        && asked != recorded
    {
        let name = recorded.name();
        bail!("the provider `{name}` is up: run `cargo xtask down` first");
    }
    if let Some(name) = asked.or(recorded) {
        return Ok(name);
    }
    if !engine() {
        return Ok(ProviderName::Node);
    }
    if !missing.is_empty() {
        let missing = missing.join("`, `");
        eprintln!(
            "a Docker engine answers, but there is no `{missing}`: taking the provider `node`"
        );
        return Ok(ProviderName::Node);
    }
    Ok(ProviderName::Kind)
}

fn file(root: &Path) -> PathBuf {
    root.join("provider")
}

/// The one of the last `up`, whatever became of it, until a `down` has succeeded. What isn't a
/// provider's name counts as none.
pub(super) fn recorded(root: &Path) -> Result<Option<ProviderName>> {
    let path = file(root);
    match fs::read_to_string(&path) {
        Ok(text) => {
            let mut names = ProviderName::value_variants().iter().copied();
            Ok(names.find(|provider| provider.name() == text.trim()))
        }
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("reading {}", path.display())),
    }
}

/// To be called before anything is started.
pub(super) fn record(root: &Path, name: ProviderName) -> Result<()> {
    let path = file(root);
    fs::write(&path, name.name()).with_context(|| format!("writing {}", path.display()))
}

/// To be called when nothing is left.
pub(super) fn forget(root: &Path) -> Result<()> {
    let path = file(root);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", path.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::ProviderName::{Kind, Node};
    use super::*;

    #[test]
    fn kind_is_taken_only_where_all_of_it_is_there() {
        for (asked, recorded, engine, missing, taken) in [
            (None, None, true, "", Some(Kind)),
            (None, None, true, "kind helm", Some(Node)),
            (None, None, false, "", Some(Node)),
            // What is up stays, whatever the machine has by now.
            (None, Some(Node), true, "", Some(Node)),
            (None, Some(Kind), false, "kind", Some(Kind)),
            (Some(Kind), None, false, "kind", Some(Kind)),
            (Some(Node), None, true, "", Some(Node)),
            (Some(Node), Some(Node), true, "", Some(Node)),
            (Some(Kind), Some(Node), true, "", None),
            (Some(Node), Some(Kind), false, "", None),
        ] {
            let case = (asked, recorded, engine, missing);
            let missing: Vec<_> = missing.split_whitespace().collect();
            let picked = pick(asked, recorded, || engine, &missing).ok();
            assert_eq!(picked, taken, "{case:?}");
        }
    }

    #[test]
    fn the_engine_is_asked_only_where_nothing_else_decides() {
        let engine = || -> bool { panic!("the engine was asked") };
        assert_eq!(pick(Some(Node), None, engine, &[]).unwrap(), Node);
        assert_eq!(pick(None, Some(Kind), engine, &[]).unwrap(), Kind);
    }

    #[test]
    fn the_recorded_provider_is_known_until_it_is_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        assert_eq!(recorded(root).unwrap(), None);
        for name in [Kind, Node] {
            record(root, name).unwrap();
            assert_eq!(recorded(root).unwrap(), Some(name));
        }
        forget(root).unwrap();
        forget(root).unwrap();
        assert_eq!(recorded(root).unwrap(), None);
    }

    #[test]
    fn what_names_no_provider_stands_in_nobodys_way() {
        let folder = tempfile::tempdir().unwrap();
        for text in ["", "no", "nodes"] {
            fs::write(file(folder.path()), text).unwrap();
            assert_eq!(recorded(folder.path()).unwrap(), None, "{text}");
        }
    }
}
