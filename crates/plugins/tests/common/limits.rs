//! Pods whose rate is limited, and how fast they are.
#![allow(dead_code, unreachable_pub)]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::netns_of;

/// 5,000,000 bytes a second.
pub const RATE: u64 = 40_000_000;
pub const BURST: u64 = 2_000_000;

pub fn limits(towards: bool, from: bool) -> Value {
    let mut keys = json!({});
    if towards {
        keys["ingressRate"] = json!(RATE);
        keys["ingressBurst"] = json!(BURST);
    }
    if from {
        keys["egressRate"] = json!(RATE);
        keys["egressBurst"] = json!(BURST);
    }
    keys
}

pub fn send(mut to: TcpStream, bytes: usize) {
    let chunk = [7; 16 * 1024];
    for _ in 0..bytes / chunk.len() {
        to.write_all(&chunk).unwrap();
    }
}

pub fn receive(mut from: TcpStream) -> usize {
    let (mut buffer, mut all) = (vec![0; 64 * 1024], 0);
    loop {
        match from.read(&mut buffer).unwrap() {
            0 => return all,
            n => all += n,
        }
    }
}

/// Bits a second from here to an address of a pod.
pub fn towards(pod: &str, ip: &str, bytes: usize) -> u64 {
    let at = SocketAddr::new(ip.parse().unwrap(), 0);
    let listener = netns_of(pod).run(|| TcpListener::bind(at).unwrap()).unwrap();
    measure(|to| TcpStream::connect(to).unwrap(), listener, bytes)
}

/// Bits a second from a pod to an address of the node.
pub fn from(pod: &str, ip: &str, bytes: usize) -> u64 {
    let listener = TcpListener::bind(SocketAddr::new(ip.parse().unwrap(), 0)).unwrap();
    let ns = netns_of(pod);
    measure(|to| ns.run(|| TcpStream::connect(to).unwrap()).unwrap(), listener, bytes)
}

pub fn measure(
    connect: impl Fn(SocketAddr) -> TcpStream,
    listener: TcpListener,
    bytes: usize,
) -> u64 {
    let to = listener.local_addr().unwrap();
    let receiver = std::thread::spawn(move || receive(listener.accept().unwrap().0));
    let stream = connect(to);
    let start = Instant::now();
    send(stream, bytes);
    let got = receiver.join().unwrap();
    let took = start.elapsed().max(Duration::from_micros(1));
    (got as u128 * 8_000_000 / took.as_micros()) as u64
}

/// A busy machine may be slow for a moment, but never lets too much pass.
#[track_caller]
pub fn is_limited(what: &str, measured: &dyn Fn() -> u64) {
    let mut rate = 0;
    for _ in 0..8 {
        rate = measured();
        println!("{what}: {rate} bit/s");
        assert!(rate < RATE * 2, "{what}: {rate} bit/s, limit {RATE}");
        if rate > RATE / 2 {
            return;
        }
    }
    panic!("{what}: {rate} bit/s, limit {RATE}");
}

#[track_caller]
pub fn is_free(what: &str, measured: &dyn Fn() -> u64) {
    let mut rate = 0;
    for _ in 0..8 {
        rate = measured();
        println!("{what}: {rate} bit/s");
        if rate > RATE * 3 {
            return;
        }
    }
    panic!("{what}: {rate} bit/s, limit of others {RATE}");
}

/// The node's addresses on the bridge.
pub fn gateways(result: &Value) -> Vec<String> {
    let ips = result["ips"].as_array().unwrap().iter();
    ips.map(|ip| ip["gateway"].as_str().unwrap().to_owned()).collect()
}

pub const SOME: usize = 6_000_000;
