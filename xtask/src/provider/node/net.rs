//! The cable between this machine and the node, and the routes to pods and services.

use std::process::Command;

use anyhow::Result;

use super::layout::{HOST, NODE, PODS, SERVICES};
use super::namespaces::Namespaces;
use crate::process::{self, SHORT};

const HOST_END: &str = "millstream0";
const NODE_END: &str = "eth0";

/// Makes the node reachable; puts right what a killed `up` left half done.
pub(super) fn connect(node: &Namespaces) -> Result<()> {
    let inside = |arguments: &[&str]| {
        let mut command = node.enter();
        command.arg("ip").args(arguments);
        command
    };
    let show = ["link", "show", NODE_END];
    if !process::succeeds(&mut inside(&show), SHORT) || !exists() {
        unplug()?;
        let init = node.init().to_string();
        ip(&[
            "link", "add", HOST_END, "type", "veth", "peer", "name", NODE_END, "netns", &init,
        ])?;
    }
    let (host, node) = (format!("{HOST}/30"), format!("{NODE}/30"));
    ip(&["address", "replace", &host, "dev", HOST_END])?;
    ip(&["link", "set", HOST_END, "up"])?;
    process::run(&mut inside(&["address", "replace", &node, "dev", NODE_END]))?;
    process::run(&mut inside(&["link", "set", NODE_END, "up"]))?;
    let gateway = HOST.to_string();
    process::run(&mut inside(&[
        "route", "replace", "default", "via", &gateway,
    ]))?;
    for range in [PODS, SERVICES] {
        // When the node is gone, a stale pod address must not leave the machine.
        ip(&["route", "replace", "unreachable", range, "metric", "4000"])?;
        ip(&[
            "route",
            "replace",
            range,
            "via",
            &NODE.to_string(),
            "dev",
            HOST_END,
        ])?;
    }
    Ok(())
}

/// Takes the interface and the routes away; what isn't there is fine.
pub(super) fn disconnect() -> Result<()> {
    unplug()?;
    for range in [PODS, SERVICES] {
        let routes = process::output(Command::new("ip").args(["route", "show", range]), SHORT)?;
        if routes
            .lines()
            .any(|route| route.starts_with("unreachable") && route.contains("4000"))
        {
            ip(&["route", "delete", "unreachable", range, "metric", "4000"])?;
        }
    }
    Ok(())
}

fn unplug() -> Result<()> {
    // It may be going away with the node at this very moment.
    if exists() && ip(&["link", "delete", HOST_END]).is_err() && exists() {
        ip(&["link", "delete", HOST_END])?;
    }
    Ok(())
}

fn exists() -> bool {
    process::succeeds(Command::new("ip").args(["link", "show", HOST_END]), SHORT)
}

fn ip(arguments: &[&str]) -> Result<()> {
    process::run(Command::new("ip").args(arguments))
}
