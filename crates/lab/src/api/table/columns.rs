//! The columns of the built-in types, as `kubectl get` and `kubectl get -o wide` show them.

use super::Column;
use super::cells as cell;
use serde_json::Value;

const fn column(name: &'static str, kind: &'static str, cell: fn(&Value) -> Value) -> Column {
    Column { name, kind, priority: 0, cell }
}

const fn text(name: &'static str, cell: fn(&Value) -> Value) -> Column {
    column(name, "string", cell)
}

const fn wide(name: &'static str, cell: fn(&Value) -> Value) -> Column {
    Column { name, kind: "string", priority: 1, cell }
}

const NAME: Column = text("Name", cell::name);
const AGE: Column = text("Age", cell::age);

pub(crate) const GENERIC: &[Column] = &[NAME, AGE];

pub(crate) const CONFIG_MAPS: &[Column] = &[NAME, column("Data", "integer", cell::data_count), AGE];

pub(crate) const SECRETS: &[Column] =
    &[NAME, text("Type", cell::secret_type), column("Data", "integer", cell::data_count), AGE];

pub(crate) const SERVICE_ACCOUNTS: &[Column] =
    &[NAME, column("Secrets", "integer", cell::secret_count), AGE];

pub(crate) const NAMESPACES: &[Column] =
    &[NAME, text("Status", |o| cell::at(o, "/status/phase")), AGE];

pub(crate) const NODES: &[Column] = &[
    NAME,
    text("Status", cell::node_status),
    text("Roles", cell::node_roles),
    AGE,
    text("Version", |o| cell::at(o, "/status/nodeInfo/kubeletVersion")),
    wide("Internal-IP", |o| cell::node_address(o, "InternalIP")),
    wide("External-IP", |o| cell::node_address(o, "ExternalIP")),
    wide("OS-Image", |o| cell::known(o, "/status/nodeInfo/osImage")),
    wide("Kernel-Version", |o| cell::known(o, "/status/nodeInfo/kernelVersion")),
    wide("Container-Runtime", |o| cell::known(o, "/status/nodeInfo/containerRuntimeVersion")),
];

pub(crate) const PODS: &[Column] = &[
    NAME,
    text("Ready", cell::pod_ready),
    text("Status", cell::pod_status),
    text("Restarts", cell::pod_restarts),
    AGE,
    wide("IP", |o| cell::or_none(o, "/status/podIP")),
    wide("Node", |o| cell::or_none(o, "/spec/nodeName")),
    wide("Nominated Node", |o| cell::or_none(o, "/status/nominatedNodeName")),
    wide("Readiness Gates", cell::readiness_gates),
];

pub(crate) const SERVICES: &[Column] = &[
    NAME,
    text("Type", |o| cell::at(o, "/spec/type")),
    text("Cluster-IP", |o| cell::or_none(o, "/spec/clusterIP")),
    text("External-IP", cell::service_external),
    text("Port(s)", cell::service_ports),
    AGE,
    wide("Selector", |o| cell::labels(o, "/spec/selector")),
];

pub(crate) const ENDPOINTS: &[Column] = &[NAME, text("Endpoints", cell::endpoints), AGE];

pub(crate) const ENDPOINT_SLICES: &[Column] = &[
    NAME,
    text("AddressType", |o| cell::at(o, "/addressType")),
    text("Ports", cell::slice_ports),
    text("Endpoints", cell::slice_endpoints),
    AGE,
];

pub(crate) const NETWORK_POLICIES: &[Column] =
    &[NAME, text("Pod-Selector", cell::pod_selector), AGE];

pub(crate) const LEASES: &[Column] =
    &[NAME, text("Holder", |o| cell::at(o, "/spec/holderIdentity")), AGE];

pub(crate) const DEFINITIONS: &[Column] =
    &[NAME, text("Created At", |o| cell::at(o, "/metadata/creationTimestamp"))];

pub(crate) const EVENTS: &[Column] = &[
    text("Last Seen", cell::event_seen),
    text("Type", |o| cell::at(o, "/type")),
    text("Reason", |o| cell::at(o, "/reason")),
    text("Object", cell::event_object),
    wide("Subobject", |o| cell::at(o, "/involvedObject/fieldPath")),
    wide("Source", cell::event_source),
    text("Message", |o| cell::at(o, "/message")),
    wide("First Seen", cell::event_first),
    wide("Count", cell::event_count),
    wide("Name", cell::name),
];
