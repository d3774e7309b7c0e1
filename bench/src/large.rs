//! What the agent of a full node costs in a large cluster: 100 pods on it, 200 more Nodes in its view.
//!
//! The Nodes are objects of the API's alone, as large as those of real clusters, whose kubelets list the
//! images that they hold; like kubelets they write their status every five minutes.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use causeway_lab::{Client, create_pod, delete_pod};
use serde_json::{Value, json};

use crate::agent::{IDLE, NODE, PATIENCE, busy, kib, pid};
use crate::report::Series;

const NODES: u32 = 200;
/// A kubelet's `maxPods` is 110.
const PODS: usize = 100;
/// Images that a kubelet lists (`nodeStatusMaxImages`).
const IMAGES: usize = 50;
/// How often a kubelet writes a status that is as before (`nodeStatusReportFrequency`).
const REPORT: Duration = Duration::from_secs(300);
/// Pods that come and go.
const CHANGES: usize = 20;

/// Fills a lab, in which nothing is left as it was.
///
/// # Errors
/// When an object is refused, or a pod does not run.
pub(crate) fn run(client: &Client) -> Result<Vec<Series>> {
    for number in 0..NODES {
        client.post("/api/v1/nodes", &node(number))?;
    }
    for number in 0..PODS {
        create_pod(client, &format!("full-{number}"), Some(NODE), &[], PATIENCE)?;
    }
    thread::sleep(Duration::from_secs(5));
    let agent = pid(client, NODE)?;
    let what = format!("{PODS} pods, {NODES} more Nodes");
    let before = busy(agent)?;
    let took = reports(client)?;
    let share = one(
        format!("processor time, nothing but Nodes' reports, {what}"),
        "%",
        (busy(agent)? - before) / took.as_secs_f64() * 100.0,
    );
    let resident = one(format!("resident memory, {what}"), "MiB", kib(agent, "VmRSS")? / 1024.0);
    let most = one(format!("most memory ever, {what}"), "MiB", kib(agent, "VmHWM")? / 1024.0);
    let before = busy(agent)?;
    for number in 0..CHANGES {
        let name = format!("more-{number}");
        create_pod(client, &name, Some(NODE), &[], PATIENCE)?;
        delete_pod(client, &name, PATIENCE)?;
    }
    // What is done for a pod after it is gone.
    thread::sleep(Duration::from_secs(1));
    let each = (busy(agent)? - before) / CHANGES as f64 * 1e3;
    Ok(vec![
        resident,
        most,
        share,
        one(format!("processor time for a pod that comes and goes, {what}"), "ms", each),
    ])
}

pub(crate) fn one(name: String, unit: &'static str, value: f64) -> Series {
    let mut series = Series::new(name, unit, None);
    series.samples.push(value);
    series
}

/// A Node of the size that real ones have, on the link of the lab's nodes.
pub(crate) fn node(number: u32) -> Value {
    let name = format!("far-{number}");
    let image = |n: usize| {
        let repository = format!("registry.example.net/team-{n}/a-service-of-some-length-{n}");
        let digest = format!("{n:02x}").repeat(32);
        json!({
            "names": [format!("{repository}@sha256:{digest}"), format!("{repository}:v1.2.{n}")],
            "sizeBytes": 123_456_789 + n,
        })
    };
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
        "spec": {},
        "status": {
            "addresses": [
                {"type": "InternalIP", "address": format!("192.168.1.{}", 20 + number)},
                {"type": "Hostname", "address": name},
            ],
            "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady"}],
            "images": (0..IMAGES).map(image).collect::<Vec<_>>(),
        },
    })
}

/// For a while each Node's status is written now and then. Answers how long that took.
fn reports(client: &Client) -> Result<Duration> {
    let start = Instant::now();
    for number in 0.. {
        thread::sleep((REPORT / NODES * number).saturating_sub(start.elapsed()));
        if start.elapsed() > IDLE {
            break;
        }
        let path = format!("/api/v1/nodes/far-{}", number % NODES);
        let mut object = client.get(&path)?;
        let conditions = object["status"]["conditions"].as_array_mut().context("conditions")?;
        conditions[0]["lastHeartbeatTime"] =
            json!(format!("2026-01-01T00:{:02}:{:02}Z", number / 60 % 60, number % 60));
        client.put(&format!("{path}/status"), &object)?;
    }
    Ok(start.elapsed())
}
