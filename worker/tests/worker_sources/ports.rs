//! Ports for what tests and benchmarks start.

use std::{
    net::TcpListener,
    process,
    sync::atomic::{AtomicU32, Ordering},
};

/// Below those that Linux gives to whoever asks for any (from 32768), and Kubernetes to services
/// (from 30000): nothing takes one between this look and the server's start.
const FIRST: u16 = 20_000;
const COUNT: u32 = 10_000;

/// A free port. Two programs begin at different places.
pub fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    loop {
        let taken = process::id() * 97 + NEXT.fetch_add(1, Ordering::Relaxed);
        let port = FIRST + (taken % COUNT) as u16;
        if TcpListener::bind(("0.0.0.0", port)).is_ok() {
            return port;
        }
    }
}
