//! The built-in types, one row each. Everything else (paths, discovery, tables, selectors) follows
//! from the row.

use super::table::Column;
use super::table::columns as c;

pub(crate) struct Row {
    pub(crate) group: &'static str,
    pub(crate) version: &'static str,
    pub(crate) plural: &'static str,
    pub(crate) kind: &'static str,
    pub(crate) short: &'static [&'static str],
    pub(crate) categories: &'static [&'static str],
    pub(crate) namespaced: bool,
    pub(crate) subresources: &'static [&'static str],
    pub(crate) fields: &'static [&'static str],
    pub(crate) columns: &'static [Column],
    pub(crate) review: bool,
}

const fn row(
    group: &'static str,
    plural: &'static str,
    kind: &'static str,
    namespaced: bool,
) -> Row {
    Row {
        group,
        version: "v1",
        plural,
        kind,
        short: &[],
        categories: &[],
        namespaced,
        subresources: &[],
        fields: &[],
        columns: c::GENERIC,
        review: false,
    }
}

const fn review(group: &'static str, plural: &'static str, kind: &'static str) -> Row {
    Row { review: true, ..row(group, plural, kind, false) }
}

pub(crate) const BUILT_IN: &[Row] = &[
    Row { short: &["cm"], columns: c::CONFIG_MAPS, ..row("", "configmaps", "ConfigMap", true) },
    Row { short: &["ep"], columns: c::ENDPOINTS, ..row("", "endpoints", "Endpoints", true) },
    Row {
        short: &["ev"],
        columns: c::EVENTS,
        fields: &[
            "involvedObject.kind",
            "involvedObject.namespace",
            "involvedObject.name",
            "involvedObject.uid",
            "involvedObject.apiVersion",
            "involvedObject.resourceVersion",
            "involvedObject.fieldPath",
            "reason",
            "reportingComponent",
            "source",
            "type",
        ],
        ..row("", "events", "Event", true)
    },
    Row {
        short: &["ns"],
        columns: c::NAMESPACES,
        subresources: &["status", "finalize"],
        fields: &["status.phase"],
        ..row("", "namespaces", "Namespace", false)
    },
    Row {
        short: &["no"],
        columns: c::NODES,
        subresources: &["status"],
        fields: &["spec.unschedulable"],
        ..row("", "nodes", "Node", false)
    },
    Row {
        short: &["po"],
        categories: &["all"],
        columns: c::PODS,
        subresources: &["status", "binding", "log", "exec", "attach", "portforward"],
        fields: &[
            "spec.nodeName",
            "spec.restartPolicy",
            "spec.schedulerName",
            "spec.serviceAccountName",
            "spec.hostNetwork",
            "status.phase",
            "status.podIP",
            "status.nominatedNodeName",
        ],
        ..row("", "pods", "Pod", true)
    },
    Row { columns: c::SECRETS, fields: &["type"], ..row("", "secrets", "Secret", true) },
    Row {
        short: &["sa"],
        columns: c::SERVICE_ACCOUNTS,
        ..row("", "serviceaccounts", "ServiceAccount", true)
    },
    Row {
        short: &["svc"],
        categories: &["all"],
        columns: c::SERVICES,
        subresources: &["status"],
        fields: &["spec.clusterIP", "spec.type"],
        ..row("", "services", "Service", true)
    },
    Row {
        short: &["crd", "crds"],
        categories: &["api-extensions"],
        columns: c::DEFINITIONS,
        subresources: &["status"],
        ..row(
            "apiextensions.k8s.io",
            "customresourcedefinitions",
            "CustomResourceDefinition",
            false,
        )
    },
    review("authentication.k8s.io", "selfsubjectreviews", "SelfSubjectReview"),
    review("authorization.k8s.io", "selfsubjectaccessreviews", "SelfSubjectAccessReview"),
    review("authorization.k8s.io", "selfsubjectrulesreviews", "SelfSubjectRulesReview"),
    Row { columns: c::LEASES, ..row("coordination.k8s.io", "leases", "Lease", true) },
    Row {
        columns: c::ENDPOINT_SLICES,
        ..row("discovery.k8s.io", "endpointslices", "EndpointSlice", true)
    },
    Row {
        short: &["netpol"],
        columns: c::NETWORK_POLICIES,
        ..row("networking.k8s.io", "networkpolicies", "NetworkPolicy", true)
    },
];
