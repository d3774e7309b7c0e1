//! The API server.

use crate::facts::Facts;
use crate::facts::cluster::{Api, Kind, Obstacle};
use crate::finding::{Finding, Severity};

/// Seconds by which clocks may differ. Tokens and certificates have leeway of about that.
const SLACK: i64 = 60;

/// What is in the way of the API.
pub(super) fn reached(facts: &Facts) -> Vec<Finding> {
    let Some(api) = facts.api.as_ref().filter(|_| facts.node.served) else { return Vec::new() };
    api.obstacle.iter().map(|obstacle| obstructed(api, obstacle)).collect()
}

fn obstructed(api: &Api, obstacle: &Obstacle) -> Finding {
    let why = &obstacle.why;
    if obstacle.kind == Kind::NoCredentials {
        return Finding::new("api-not-asked", Severity::Note, "the API")
            .says(
                format!("the API was not asked: {why}"),
                "of other nodes only that is judged which the agent keeps on disk",
            )
            .fix(["causeway doctor --kubeconfig FILE".to_owned()]);
    }
    let refuses = matches!(obstacle.kind, Kind::Unauthorized | Kind::Forbidden);
    let id = if refuses { "api-refuses" } else { "api-unreachable" };
    // The agent may have a connection of before, or other credentials.
    let severity = if api.agent_connected { Severity::Warning } else { Severity::Error };
    let does = match api.agent_connected {
        true => "the agent is connected; a new connection would fail",
        false => "the agent learns of no node and no pod; what runs goes on",
    };
    Finding::new(id, severity, api.server.clone())
        .says(format!("{}: {why}", what(obstacle.kind)), does)
        .fix(todo(api, obstacle.kind))
}

fn what(kind: Kind) -> &'static str {
    match kind {
        Kind::NoCredentials => "nothing says where the API is",
        Kind::Configuration => "the way to the API is configured wrong",
        Kind::Name => "the API server's name is not found",
        Kind::Refused => "the API server's host refuses the connection",
        Kind::Silent => "nothing comes back from the API server",
        Kind::Unreachable => "there is no way to the API server",
        Kind::Tls => "no TLS with the API server",
        Kind::Broken => "the API server takes connections and does not answer",
        Kind::Unauthorized => "the API does not know who we are (401)",
        Kind::Forbidden => "the API does not allow what the agent needs (403)",
        Kind::Answer => "the API answers something else than expected",
    }
}

fn todo(api: &Api, kind: Kind) -> Vec<String> {
    let host = api.server.trim_start_matches("https://").trim_end_matches('/');
    let words = match kind {
        Kind::NoCredentials | Kind::Configuration => {
            "# put right kubeconfig, k8sServiceHost or k8sServicePort in /etc/causeway/config.yaml"
        }
        Kind::Name => {
            "# put right /etc/resolv.conf, or name the server by its address: k8sServiceHost in \
             /etc/causeway/config.yaml. A cluster's own DNS does not work before its pod network"
        }
        Kind::Refused => {
            "# see that the API server runs, and listens on that port; where the address is a \
             Service's, kube-proxy has to run, or k8sServiceHost names the server itself"
        }
        Kind::Silent => {
            return vec![
                "ip route get ".to_owned() + host_only(host),
                "# a firewall drops it, or the host is down: open the port from this node \
                 (causeway doctor --firewall nft --role control-plane, on that host)"
                    .to_owned(),
            ];
        }
        Kind::Unreachable => {
            return vec![
                "ip route get ".to_owned() + host_only(host),
                "# no route, no neighbour of that address, or a firewall rejects it".to_owned(),
            ];
        }
        Kind::Tls => {
            "# the certificate has to be valid now (see the clock: timedatectl), for this name, and by \
             the authority in the kubeconfig or the service account"
        }
        Kind::Broken => "# look at the API server's load, its etcd and its log",
        Kind::Unauthorized => {
            "# the token or certificate is out of date: make the kubeconfig anew, or let the agent's \
             pod be made anew"
        }
        Kind::Forbidden => {
            "# apply the ClusterRole and its binding of deploy/causeway.yaml, or of the chart, anew"
        }
        Kind::Answer => "# look at the API server's log, and at proxies on the way",
    };
    vec![words.to_owned()]
}

/// The host of `host:port`, without the brackets of IPv6.
fn host_only(authority: &str) -> &str {
    let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host);
    host.trim_start_matches('[').trim_end_matches(']')
}

/// Clocks that differ.
pub(super) fn skew(facts: &Facts) -> Vec<Finding> {
    let Some(api) = &facts.api else { return Vec::new() };
    let Some(skew) = api.skew.filter(|s| s.abs() > SLACK) else { return Vec::new() };
    let way = if skew > 0 { "behind" } else { "ahead of" };
    let finding = Finding::new("clock-skew", Severity::Warning, api.server.clone())
        .says(
            format!("this node's clock is {} s {way} the API server's", skew.abs()),
            "certificates and tokens count as not valid yet or no more, and leases run out",
        )
        .fix(["timedatectl set-ntp true".to_owned()]);
    vec![finding]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(api: Api) -> Facts {
        let mut facts = Facts { api: Some(api), ..Facts::default() };
        facts.node.served = true;
        facts
    }

    fn with(kind: Kind, agent_connected: bool) -> Vec<Finding> {
        let obstacle = Some(Obstacle { kind, why: "so it is".into() });
        let server = "https://[fd00::1]:6443/".to_owned();
        reached(&facts(Api { server, obstacle, agent_connected, skew: None }))
    }

    #[test]
    fn obstacles_are_told_apart() {
        for (kind, id) in [
            (Kind::Configuration, "api-unreachable"),
            (Kind::Name, "api-unreachable"),
            (Kind::Refused, "api-unreachable"),
            (Kind::Silent, "api-unreachable"),
            (Kind::Unreachable, "api-unreachable"),
            (Kind::Tls, "api-unreachable"),
            (Kind::Broken, "api-unreachable"),
            (Kind::Answer, "api-unreachable"),
            (Kind::Unauthorized, "api-refuses"),
            (Kind::Forbidden, "api-refuses"),
        ] {
            let found = with(kind, false);
            assert_eq!((found[0].id, found[0].severity), (id, Severity::Error), "{kind:?}");
            assert!(found[0].what.ends_with(": so it is"));
            assert_eq!(with(kind, true)[0].severity, Severity::Warning);
        }
        assert_eq!(with(Kind::Silent, false)[0].todo[0], "ip route get fd00::1");
        let found = with(Kind::NoCredentials, false);
        assert_eq!((found[0].id, found[0].severity), ("api-not-asked", Severity::Note));
    }

    #[test]
    fn clocks() {
        let at = |s| skew(&facts(Api { skew: Some(s), ..Api::default() }));
        assert_eq!((at(60).len(), at(-60).len()), (0, 0));
        assert!(at(61)[0].what.contains("61 s behind"));
        assert!(at(-3600)[0].what.contains("3600 s ahead of"));
    }
}
