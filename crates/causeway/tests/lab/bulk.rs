//! Many objects at once: a cluster that is large in the API alone.

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::unix::net::UnixStream;

use serde_json::{Value, json};

use crate::enforce::policies_path;
use crate::world::World;

/// Requests to the API, sent by one connection.
pub(crate) struct Bulk<'a> {
    world: &'a World,
    token: String,
    text: String,
    number: usize,
}

/// The addresses of a pod that no node of the lab runs.
pub(crate) fn addresses(n: u16) -> (Ipv4Addr, Ipv6Addr) {
    let [high, low] = n.to_be_bytes();
    ([10, 200, high, low].into(), [0xfd00, 0x200, 0, 0, 0, 0, 0, n + 1].into())
}

impl<'a> Bulk<'a> {
    pub(crate) fn new(world: &'a World) -> Self {
        let token = std::fs::read_to_string(world.spec.dirs().token()).unwrap();
        Self { world, token: token.trim().to_owned(), text: String::new(), number: 0 }
    }

    fn add(&mut self, method: &str, path: &str, object: &Value) {
        let body = if object.is_null() { String::new() } else { object.to_string() };
        let token = &self.token;
        let _ = write!(
            self.text,
            "{method} {path} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {token}\r\n\
             accept: application/json\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        self.number += 1;
    }

    pub(crate) fn policy(&mut self, name: &str, spec: &Value) {
        let object = json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {"name": name, "namespace": "default"}, "spec": spec});
        self.add("POST", &policies_path("default"), &object);
    }

    /// A pod that a node of the lab is to run.
    pub(crate) fn pod(&mut self, name: &str, node: &str, labels: &Value) {
        let object = json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": "default", "labels": labels},
            "spec": {"nodeName": node, "containers": [{"name": "main", "image": "lab"}]}});
        self.add("POST", "/api/v1/namespaces/default/pods", &object);
    }

    /// A pod of a node that the lab has not: its object is all that there is of it.
    pub(crate) fn foreign_pod(&mut self, n: u16, labels: &Value) {
        let path = "/api/v1/namespaces/default/pods";
        let (v4, v6) = addresses(n);
        let mut object = json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": format!("far-{n}"), "namespace": "default", "labels": labels},
            "spec": {"nodeName": "far", "containers": [{"name": "main", "image": "lab"}]}});
        self.add("POST", path, &object);
        object["status"] =
            json!({"phase": "Running", "podIP": v4, "podIPs": [{"ip": v4}, {"ip": v6}]});
        self.add("PUT", &format!("{path}/far-{n}/status"), &object);
    }

    /// A foreign pod ends.
    pub(crate) fn remove_pod(&mut self, n: u16) {
        let path = format!("/api/v1/namespaces/default/pods/far-{n}?gracePeriodSeconds=0");
        self.add("DELETE", &path, &json!({}));
    }

    /// Sends all of them; none may be refused.
    #[track_caller]
    pub(crate) fn send(mut self) {
        self.add("GET", "/version", &Value::Null);
        // The last one of the connection.
        let last = self.text.rfind("accept: ").unwrap();
        self.text.insert_str(last, "connection: close\r\n");
        let mut stream = UnixStream::connect(self.world.spec.dirs().api()).unwrap();
        let mut writer = stream.try_clone().unwrap();
        let (text, number) = (self.text, self.number);
        let sender = std::thread::spawn(move || writer.write_all(text.as_bytes()));
        let mut answers = Vec::new();
        stream.read_to_end(&mut answers).unwrap();
        sender.join().unwrap().unwrap();
        let answers = String::from_utf8_lossy(&answers);
        let bad = answers.split("HTTP/1.1 ").skip(1).find(|answer| !answer.starts_with("20"));
        assert_eq!(bad, None);
        assert_eq!(answers.matches("HTTP/1.1 20").count(), number);
    }
}
