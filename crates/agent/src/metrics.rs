//! Numbers for monitoring.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use causeway_plugins::usage::Usage;

use crate::status::{State, Status};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OpLabels {
    kind: &'static str,
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabel {
    state: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FeedLabel {
    feed: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DropLabels {
    reason: &'static str,
    policy: String,
    rule: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct AddressLabels {
    range: String,
    state: &'static str,
}

/// All metrics of the agent.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    reconciles: Counter,
    duration: Histogram,
    operations: Family<OpLabels, Counter>,
    objects: Family<StateLabel, Gauge>,
    repairs: Counter,
    leases_released: Counter,
    addresses: Family<AddressLabels, Gauge>,
    restarts: Family<FeedLabel, Counter>,
    drops: Family<DropLabels, Counter>,
    dropped_packets: Family<ReasonLabel, Counter>,
    ready: Gauge,
    synced: Gauge,
    /// Also for status.
    rounds: AtomicU64,
    done: AtomicU64,
}

impl Default for Metrics {
    fn default() -> Self {
        let duration = Histogram::new(exponential_buckets(0.0005, 2.0, 14));
        let mut metrics = Self {
            registry: Registry::with_prefix("causeway"),
            reconciles: Counter::default(),
            duration,
            operations: Family::default(),
            objects: Family::default(),
            repairs: Counter::default(),
            leases_released: Counter::default(),
            addresses: Family::default(),
            restarts: Family::default(),
            drops: Family::default(),
            dropped_packets: Family::default(),
            ready: Gauge::default(),
            synced: Gauge::default(),
            rounds: AtomicU64::new(0),
            done: AtomicU64::new(0),
        };
        metrics.register();
        metrics
    }
}

impl Metrics {
    fn register(&mut self) {
        let r = &mut self.registry;
        let version = vec![("version", env!("CARGO_PKG_VERSION"))];
        r.register("build", "The agent's version", Info::new(version));
        r.register("reconciles", "Rounds of the reconcile loop", self.reconciles.clone());
        let help = "Time of a round of the reconcile loop";
        r.register_with_unit("reconcile_duration", help, Unit::Seconds, self.duration.clone());
        let help = "Kernel operations by kind of object and result";
        r.register("operations", help, self.operations.clone());
        r.register("objects", "Objects of the node by state", self.objects.clone());
        let help = "Objects put back after others removed or changed them";
        r.register("repairs", help, self.repairs.clone());
        let help = "Leases of pods that were gone, given back without a DEL";
        r.register("leases_released", help, self.leases_released.clone());
        let help = "Addresses of the node's ranges by state: used, free, reserved";
        r.register("addresses", help, self.addresses.clone());
        r.register("watch_restarts", "Watches begun anew after an error", self.restarts.clone());
        let help = "Packets that policies dropped and the kernel told of (some of many), by policy and rule";
        r.register("policy_drops", help, self.drops.clone());
        let help = "All packets that policies dropped";
        r.register("policy_dropped_packets", help, self.dropped_packets.clone());
        r.register("ready", "1 when pods can be attached", self.ready.clone());
        r.register("synced", "1 when every input is in sync", self.synced.clone());
    }

    /// One round took so long.
    pub(crate) fn round(&self, took: Duration) {
        self.reconciles.inc();
        self.rounds.fetch_add(1, Ordering::Relaxed);
        self.duration.observe(took.as_secs_f64());
    }

    /// So many leases of pods that were gone were given back.
    pub(crate) fn leases_released(&self, count: usize) {
        self.leases_released.inc_by(count as u64);
    }

    /// The kernel told of a packet that it dropped.
    pub(crate) fn dropped(&self, reason: &'static str, policy: &str, rule: &str) {
        let labels = DropLabels { reason, policy: policy.to_owned(), rule: rule.to_owned() };
        self.drops.get_or_create(&labels).inc();
    }

    /// Takes over how many packets were dropped, by reason.
    pub(crate) fn set_dropped<'a>(&self, all: impl IntoIterator<Item = (&'a String, &'a u64)>) {
        for (reason, count) in all {
            let counter =
                self.dropped_packets.get_or_create(&ReasonLabel { reason: reason.clone() });
            counter.inner().store(*count, Ordering::Relaxed);
        }
    }

    /// Takes over how many addresses each range has.
    pub(crate) fn set_addresses(&self, all: &[Usage]) {
        self.addresses.clear();
        for usage in all {
            for (state, n) in
                [("used", usage.used), ("free", usage.free), ("reserved", usage.reserved)]
            {
                let labels = AddressLabels { range: usage.range.to_string(), state };
                let gauge = self.addresses.get_or_create(&labels);
                gauge.set(i64::try_from(n).unwrap_or(i64::MAX));
            }
        }
    }

    /// Rounds so far.
    pub(crate) fn rounds(&self) -> u64 {
        self.rounds.load(Ordering::Relaxed)
    }

    /// One operation on an object of this kind was done.
    pub(crate) fn operation(&self, kind: &'static str, ok: bool) {
        let result = if ok { "ok" } else { "failed" };
        self.operations.get_or_create(&OpLabels { kind, result }).inc();
        self.done.fetch_add(1, Ordering::Relaxed);
    }

    /// Operations so far, of every kind and result.
    pub(crate) fn operations_done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    /// So many objects were put back.
    pub(crate) fn repaired(&self, count: u64) {
        self.repairs.inc_by(count);
    }

    /// Repairs so far.
    pub(crate) fn repairs(&self) -> u64 {
        self.repairs.get()
    }

    /// Takes over what a status counts.
    pub(crate) fn set_status(&self, status: &Status) {
        self.ready.set(i64::from(status.ready));
        self.synced.set(i64::from(status.inputs.synced));
        for state in State::ALL {
            let count = status.objects.iter().filter(|o| o.state == state).count();
            let gauge = self.objects.get_or_create(&StateLabel { state: state.word() });
            gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
        }
        for (feed, of) in [("nodes", &status.inputs.nodes), ("pods", &status.inputs.pods)] {
            let counter = self.restarts.get_or_create(&FeedLabel { feed });
            counter.inner().store(of.restarts, Ordering::Relaxed);
        }
    }

    /// The text form (OpenMetrics 1.0).
    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a String does not fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_has_every_metric() {
        let metrics = Metrics::default();
        metrics.round(Duration::from_millis(3));
        metrics.operation("route", false);
        metrics.repaired(2);
        let range = "10.244.1.0/24".parse().unwrap();
        metrics.set_addresses(&[Usage { range, used: 3, free: u64::MAX, reserved: 0 }]);
        metrics.dropped("ingress", "NetworkPolicy web/db", "");
        metrics.set_dropped([(&"egress".to_owned(), &3)]);
        metrics.set_status(&Status { ready: true, ..Status::default() });
        let text = metrics.text();
        for line in [
            "causeway_build_info{version=",
            "causeway_reconciles_total 1",
            "causeway_reconcile_duration_seconds_count 1",
            "causeway_operations_total{kind=\"route\",result=\"failed\"} 1",
            "causeway_objects{state=\"conflict\"} 0",
            "causeway_repairs_total 2",
            "causeway_watch_restarts_total{feed=\"nodes\"} 0",
            "causeway_addresses{range=\"10.244.1.0/24\",state=\"used\"} 3",
            "causeway_policy_drops_total{reason=\"ingress\",policy=\"NetworkPolicy web/db\",rule=\"\"} 1",
            "causeway_policy_dropped_packets_total{reason=\"egress\"} 3",
            "causeway_ready 1",
        ] {
            assert!(text.contains(line), "{line} in {text}");
        }
    }
}
