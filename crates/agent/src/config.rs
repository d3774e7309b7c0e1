//! The configuration file.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use causeway_desired::input::{Config, PluginType, Road};
use causeway_types::state::Attach;
use causeway_types::{Cidr, IfName, Mtu, NodeName, Vni};
use serde::Deserialize;
use tracing_subscriber::EnvFilter;

#[cfg(test)]
mod schema;

/// Where `/healthz`, `/readyz` and `/metrics` are answered unless configured.
pub const HEALTH_ADDRESS: &str = "127.0.0.1:9470";

/// The longest time for which an address is not given out again: an hour. What is kept of it grows with
/// the pods that end in that time.
pub const MAX_COOL_DOWN: u32 = 3600;

/// A configuration that cannot be used: the file, the place in it, and what is expected there.
#[derive(Debug, thiserror::Error)]
#[error("{place}: {message}")]
pub struct ConfigError {
    /// The file, with line and column where known.
    pub place: String,
    /// What is wrong, beginning with the key.
    pub message: String,
}

/// Everything that the configuration file says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// What desired state depends on.
    pub config: Config,
    /// Verbosity, in the form of `tracing`'s filters (`info`, `causeway_agent=debug`).
    pub log_level: Option<String>,
    /// A second address for `/metrics`, for collectors off the node; none unless configured.
    pub metrics_address: Option<SocketAddr>,
    /// The address of `/healthz`, `/readyz` and `/metrics`.
    pub health_address: SocketAddr,
    /// How the API is reached; `None`: by the pod's service account.
    pub kubeconfig: Option<PathBuf>,
    /// The API server's host in place of the configured one.
    pub k8s_service_host: Option<String>,
    /// The API server's port beside that host.
    pub k8s_service_port: Option<u16>,
    /// The node's name; `None`: from the environment, or the host's name.
    pub node_name: Option<NodeName>,
}

/// The agent's configuration, in YAML. A key that is left out has its default. A key that nobody knows
/// is refused: it is a typing error more often than not.
#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(rename = "Causeway"))]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct File {
    /// The road to other nodes: `direct` within a subnet and `vxlan` across with `auto`.
    #[cfg_attr(test, schemars(schema_with = "schema::road"))]
    road: Option<Road>,
    /// How pods are attached.
    #[cfg_attr(test, schemars(schema_with = "schema::attach"))]
    attach: Option<Attach>,
    /// The plugin type in the CNI configuration list; `bridge` is the classic, with `host-local`.
    #[cfg_attr(test, schemars(schema_with = "schema::plugin"))]
    plugin: Option<PluginType>,
    /// The network's name in that list; it names the directory of leases.
    #[cfg_attr(test, schemars(schema_with = "schema::network"))]
    network: Option<String>,
    /// The bridge of `attach: bridge`.
    #[cfg_attr(test, schemars(schema_with = "schema::bridge"))]
    bridge: Option<IfName>,
    /// MTU of pods in bytes; else the underlay's, less what the tunnel takes.
    #[cfg_attr(test, schemars(schema_with = "schema::mtu"))]
    mtu: Option<Mtu>,
    /// VXLAN network identifier.
    #[cfg_attr(test, schemars(schema_with = "schema::vni"))]
    vni: Option<Vni>,
    /// UDP port of VXLAN.
    #[cfg_attr(test, schemars(schema_with = "schema::port"))]
    vxlan_port: Option<u16>,
    /// Packets of pods to the world outside the cluster get the node's address.
    masquerade: Option<bool>,
    /// Destinations outside the cluster that see pods' own addresses all the same.
    #[cfg_attr(test, schemars(schema_with = "schema::cidrs"))]
    masquerade_except: Option<Vec<Cidr>>,
    /// All pod subnets of the cluster; else they are found from the nodes.
    #[serde(rename = "clusterCIDRs")]
    #[cfg_attr(test, schemars(schema_with = "schema::cidrs"))]
    cluster_cidrs: Option<Vec<Cidr>>,
    /// The number that marks our routes.
    #[cfg_attr(test, schemars(schema_with = "schema::route_protocol"))]
    route_protocol: Option<u8>,
    /// Addresses of pod subnets and extra ranges that no pod gets.
    #[cfg_attr(test, schemars(schema_with = "schema::cidrs"))]
    reserved: Option<Vec<Cidr>>,
    /// For so many seconds an address that was given back is not given out, unless no other is free.
    #[cfg_attr(test, schemars(schema_with = "schema::cool_down"))]
    cool_down: Option<u32>,
    /// What is logged: error, warn, info, debug, trace, or TARGET=LEVEL,….
    log_level: Option<String>,
    /// An address for `/metrics` that others than the node reach.
    #[cfg_attr(test, schemars(schema_with = "schema::socket_address"))]
    metrics_address: Option<SocketAddr>,
    /// Where `/healthz`, `/readyz` and `/metrics` are answered.
    #[cfg_attr(test, schemars(schema_with = "schema::socket_address"))]
    health_address: Option<SocketAddr>,
    /// A kubeconfig file; else the API is reached by the pod's service account.
    #[cfg_attr(test, schemars(with = "Option<String>"))]
    kubeconfig: Option<PathBuf>,
    /// The API server in place of the configured one.
    k8s_service_host: Option<String>,
    /// Its port; 6443 unless given.
    #[cfg_attr(test, schemars(schema_with = "schema::port"))]
    k8s_service_port: Option<u16>,
    /// The node's name; else the variable NODE_NAME, or the host's name.
    #[cfg_attr(test, schemars(schema_with = "schema::node_name"))]
    node_name: Option<NodeName>,
}

impl Default for Settings {
    fn default() -> Self {
        Self::from_file(File::default())
    }
}

impl Settings {
    /// Reads the file. One that is not there leaves everything at its default.
    ///
    /// # Errors
    /// When it cannot be read, is no YAML, or holds a key or value that does not belong there.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        match std::fs::read_to_string(path) {
            Ok(text) => Self::parse(&path.display().to_string(), &text),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(e) => {
                Err(ConfigError { place: path.display().to_string(), message: e.to_string() })
            }
        }
    }

    /// Reads a file that must be there, to find out whether an agent would start with it.
    ///
    /// # Errors
    /// As [`Settings::load`], and when there is no such file.
    pub fn check_file(path: &Path) -> Result<(), ConfigError> {
        let place = path.display().to_string();
        match std::fs::read_to_string(path) {
            Ok(text) => Self::parse(&place, &text).map(drop),
            Err(e) => Err(ConfigError { place, message: e.to_string() }),
        }
    }

    /// Reads a text; `name` stands for the file in errors.
    ///
    /// # Errors
    /// As [`Settings::load`].
    pub fn parse(name: &str, text: &str) -> Result<Self, ConfigError> {
        let file: File = serde_saphyr::from_str(text).map_err(|e| explain(name, text, &e))?;
        let settings = Self::from_file(file);
        settings.check().map_err(|message| ConfigError { place: name.to_owned(), message })?;
        Ok(settings)
    }

    fn from_file(file: File) -> Self {
        let default = Config::default();
        let config = Config {
            road: file.road.unwrap_or(default.road),
            attach: file.attach.unwrap_or(match file.plugin {
                // The classic plugin knows only the bridge.
                Some(PluginType::Bridge) => Attach::Bridge,
                _ => default.attach,
            }),
            plugin: file.plugin.unwrap_or(default.plugin),
            network: file.network.unwrap_or(default.network),
            bridge: file.bridge.unwrap_or(default.bridge),
            mtu: file.mtu.or(default.mtu),
            vni: file.vni.unwrap_or(default.vni),
            vxlan_port: file.vxlan_port.unwrap_or(default.vxlan_port),
            masquerade: file.masquerade.unwrap_or(default.masquerade),
            masquerade_except: file.masquerade_except.unwrap_or(default.masquerade_except),
            cluster_cidrs: file.cluster_cidrs.unwrap_or(default.cluster_cidrs),
            route_protocol: file.route_protocol.unwrap_or(default.route_protocol),
            reserved: file.reserved.unwrap_or(default.reserved),
            cool_down: file.cool_down.unwrap_or(default.cool_down),
        };
        let health = || HEALTH_ADDRESS.parse().expect("a valid address");
        Self {
            config,
            log_level: file.log_level,
            metrics_address: file.metrics_address,
            health_address: file.health_address.unwrap_or_else(health),
            kubeconfig: file.kubeconfig,
            k8s_service_host: file.k8s_service_host,
            k8s_service_port: file.k8s_service_port,
            node_name: file.node_name,
        }
    }

    /// What no single value shows.
    fn check(&self) -> Result<(), String> {
        let config = &self.config;
        if config.vxlan_port == 0 {
            return Err("vxlanPort: must be 1 to 65535".to_owned());
        }
        if config.cool_down > MAX_COOL_DOWN {
            return Err(format!("coolDown: must be 0 to {MAX_COOL_DOWN} seconds"));
        }
        if self.k8s_service_port == Some(0) {
            return Err("k8sServicePort: must be 1 to 65535".to_owned());
        }
        if let Some(level) = &self.log_level {
            EnvFilter::try_new(level).map_err(|e| {
                format!("logLevel: {level:?}: {e}; expected a word such as info, or TARGET=LEVEL,…")
            })?;
        }
        if config.plugin == PluginType::Bridge && config.attach == Attach::Routed {
            return Err("attach: plugin `bridge` attaches pods to a bridge; remove `attach: \
                        routed`, or use `plugin: causeway`"
                .to_owned());
        }
        if config.network.is_empty() || config.network.contains(['/', '\0', '\n']) {
            return Err(format!(
                "network: {:?} must be a name without slashes: it names the lease directory",
                config.network
            ));
        }
        if config.bridge.as_str().starts_with("cw") {
            return Err(format!("bridge: {}: names that begin with `cw` are ours", config.bridge));
        }
        // Numbers that the kernel or a daemon of every distribution uses (RTPROT_*); the routes
        // of others would look like ours.
        if config.route_protocol < 5 || config.route_protocol == 9 || config.route_protocol == 16 {
            return Err(format!(
                "routeProtocol: {} belongs to the kernel or the system; take 203, or another \
                 number that /etc/iproute2/rt_protos does not list",
                config.route_protocol
            ));
        }
        Ok(())
    }
}

/// Names the place and the key, in one line.
fn explain(name: &str, text: &str, error: &serde_saphyr::Error) -> ConfigError {
    let full = error.to_string();
    let first = full.lines().next().unwrap_or_default();
    let Some(location) = error.location() else {
        let message = first.trim_start_matches("error: ").to_owned();
        return ConfigError { place: name.to_owned(), message };
    };
    let (line, column) = (location.line(), location.column());
    let prefix = format!("error: line {line} column {column}: ");
    let what = first.strip_prefix(&prefix).unwrap_or(first);
    let message = match key_at(text, usize::try_from(line).unwrap_or(usize::MAX)) {
        Some(key) if !what.starts_with("unknown field") => format!("{key}: {what}"),
        _ => what.to_owned(),
    };
    ConfigError { place: format!("{name}:{line}:{column}"), message }
}

/// The top-level key that a line (from 1) belongs to.
fn key_at(text: &str, line: usize) -> Option<&str> {
    let above: Vec<&str> = text.lines().take(line).collect();
    above.into_iter().rev().find_map(|l| {
        let (key, _) = l.split_once(':')?;
        let plain = !key.is_empty() && key.chars().all(|c| c.is_ascii_alphanumeric());
        plain.then_some(key)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        Settings::parse("c.yaml", text).expect_err(text).to_string()
    }

    #[test]
    fn nothing_said_means_the_defaults() {
        assert_eq!(Settings::parse("c", "").unwrap(), Settings::default());
        assert_eq!(Settings::parse("c", "# only a comment\n").unwrap(), Settings::default());
        assert_eq!(Settings::default().config, Config::default());
        assert_eq!(Settings::load(Path::new("/nonexistent")).unwrap(), Settings::default());
    }

    #[test]
    fn every_key() {
        let text = "road: vxlan\nattach: bridge\nplugin: bridge\nnetwork: n\nbridge: br0\nmtu: 1400\n\
            vni: 7\nvxlanPort: 4789\nmasquerade: false\nmasqueradeExcept: [192.0.2.0/24]\n\
            clusterCIDRs:\n- 10.244.0.0/16\n- fd00:10:244::/48\nrouteProtocol: 204\n\
            reserved: [10.244.1.0/28]\ncoolDown: 60\nlogLevel: debug\n\
            metricsAddress: 0.0.0.0:9471\nhealthAddress: '[::1]:9470'\nkubeconfig: /k\n\
            k8sServiceHost: h\nk8sServicePort: 6443\nnodeName: node-1\n";
        let s = Settings::parse("c", text).unwrap();
        assert_eq!(s.config.road, Road::Vxlan);
        assert_eq!(s.config.plugin, PluginType::Bridge);
        assert_eq!(s.config.cluster_cidrs.len(), 2);
        assert_eq!(s.config.route_protocol, 204);
        assert_eq!((s.config.reserved.len(), s.config.cool_down), (1, 60));
        assert_eq!(s.health_address.to_string(), "[::1]:9470");
        assert_eq!(s.node_name.unwrap().as_str(), "node-1");
    }

    #[test]
    fn the_classic_plugin_means_the_bridge() {
        assert_eq!(Settings::parse("c", "plugin: bridge").unwrap().config.attach, Attach::Bridge);
        assert!(error("plugin: bridge\nattach: routed\n").contains("attach: "));
    }

    #[test]
    fn errors_name_file_place_and_key() {
        let e = error("road: auto\nraod: auto\n");
        assert!(e.starts_with("c.yaml:2:1: unknown field `raod`"), "{e}");
        let e = error("road: up\n");
        assert!(e.starts_with("c.yaml:1:7: road: unknown variant `up`"), "{e}");
        let e = error("mtu: 12\n");
        assert!(e.starts_with("c.yaml:1:6: mtu: ") && e.contains("68 to 65535"), "{e}");
        let e = error("road: auto\nclusterCIDRs:\n  - 10.244.0.0/16\n  - 10.244.3.1/16\n");
        assert!(e.contains(":4:") && e.contains("clusterCIDRs: "), "{e}");
        assert!(e.contains("did you mean 10.244.0.0/16"), "{e}");
        assert!(error("healthAddress: nine\n").contains("healthAddress: "));
        assert!(error("vxlanPort: 0\n").contains("vxlanPort: "));
        assert!(error("coolDown: 4000\n").contains("coolDown: "));
        assert!(error("reserved: [10.244.1.1/28]\n").contains("did you mean 10.244.1.0/28"));
        assert!(error("bridge: cw0\n").contains("bridge: "));
        assert!(error("network: a/b\n").contains("network: "));
        assert!(error("routeProtocol: 2\n").contains("routeProtocol: "));
        assert!(error("logLevel: causeway=loud\n").contains("logLevel: "));
        assert!(error("k8sServicePort: 0\n").contains("k8sServicePort: "));
        let missing = Settings::check_file(Path::new("/nonexistent/c.yaml")).unwrap_err();
        assert!(missing.to_string().contains("/nonexistent/c.yaml: "), "{missing}");
        for text in ["mtu: 12\n", "road: [\n", "{", "- a\n"] {
            assert_eq!(error(text).lines().count(), 1, "{text}");
        }
    }
}
