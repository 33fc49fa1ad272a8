//! The node's configuration files, from the templates under `xtask/node/`.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result};

use super::layout::{API_PORT, CGROUP, Layout, NODE, PAUSE_IMAGE, PODS, text};
use super::mounts;
use super::pki::{self, USERS};
use crate::process::{self, SHORT};
use crate::template::render;

macro_rules! template {
    ($name:literal) => {
        include_str!(concat!("../../../node/", $name))
    };
}

const TEMPLATES: [(&str, &str); 6] = [
    ("cni/10-millstream.conflist", template!("cni.conflist")),
    ("kubelet.yaml", template!("kubelet.yaml")),
    ("proxy.yaml", template!("proxy.yaml")),
    ("Corefile", template!("Corefile")),
    ("audit.yaml", template!("audit.yaml")),
    ("init.sh", template!("init.sh")),
];
const CONTAINERD_1: &str = template!("containerd-1.toml");
const CONTAINERD_2: &str = template!("containerd-2.toml");
const KUBECONFIG: &str = template!("kubeconfig.yaml");

/// Writes everything that a new node starts from.
pub(super) fn write(layout: &Layout) -> Result<()> {
    let tokens = pki::create(&layout.pki())?;
    write_kubeconfigs(layout, &tokens)?;

    let config = layout.config();
    fs::create_dir_all(config.join("cni"))?;
    // Pods ask the cluster's DNS, which forwards nothing.
    fs::write(config.join("resolv.conf"), "")?;
    let (run, node, covered) = (text(&layout.run), NODE.to_string(), mounts::list());
    let values = [
        ("covered", covered.as_str()),
        ("run", run.as_str()),
        ("node", node.as_str()),
        ("pods", PODS),
        ("cgroup", CGROUP),
        ("pause", PAUSE_IMAGE),
    ];
    for (name, template) in TEMPLATES {
        let text = render(template, &values).with_context(|| name.to_owned())?;
        fs::write(config.join(name), text)?;
    }
    let containerd = match containerd_major()? {
        0 | 1 => CONTAINERD_1,
        _ => CONTAINERD_2,
    };
    fs::write(config.join("containerd.toml"), render(containerd, &values)?)?;
    Ok(())
}

fn write_kubeconfigs(layout: &Layout, tokens: &[String]) -> Result<()> {
    fs::create_dir_all(layout.config())?;
    let mut encode = Command::new("base64");
    encode.arg("--wrap=0").arg(layout.pki().join("ca.crt"));
    let authority = process::output(&mut encode, SHORT)?;
    for ((name, _, _), token) in USERS.iter().zip(tokens) {
        let (path, host) = match *name {
            "admin" => (layout.kubeconfig(), NODE.to_string()),
            _ => (
                layout.config().join(format!("{name}.kubeconfig")),
                "127.0.0.1".to_owned(),
            ),
        };
        let server = format!("{host}:{API_PORT}");
        let values: [(&str, &str); 4] = [
            ("server", &server),
            ("ca", &authority),
            ("user", name),
            ("token", token),
        ];
        pki::write_secret(&path, &render(KUBECONFIG, &values)?)?;
    }
    Ok(())
}

/// The configuration of containerd 2 differs from that of 1.
fn containerd_major() -> Result<u32> {
    let version = process::output(Command::new("containerd").arg("--version"), SHORT)?;
    let number = version.split_whitespace().nth(2).unwrap_or_default();
    let major = number
        .trim_start_matches('v')
        .split('.')
        .next()
        .unwrap_or_default();
    major
        .parse()
        .with_context(|| format!("containerd calls itself {version}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_templates_are_yaml_once_their_values_are_in() {
        let values = [
            ("run", "/run"),
            ("node", "10.97.0.2"),
            ("pods", PODS),
            ("cgroup", CGROUP),
        ];
        for (name, template) in TEMPLATES.iter().filter(|(name, _)| name.ends_with(".yaml")) {
            let text = render(template, &values).unwrap();
            let parsed: serde_json::Value = serde_saphyr::from_str(&text).unwrap();
            assert!(parsed["kind"].is_string(), "{name}");
        }
    }
}
