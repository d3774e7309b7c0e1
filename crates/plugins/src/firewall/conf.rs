//! The configuration of type `firewall`.

use causeway_cni_spec::CniError;
use serde::Deserialize;

use super::note::ADMIN;
use crate::call::Call;

/// A checked configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FirewallConf {
    /// What comes from another bridge of this kind is dropped.
    pub same_bridge: bool,
    /// Accepts are put into chains of others that drop forwarded packets.
    pub insert: bool,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Raw {
    backend: Option<String>,
    iptables_admin_chain_name: Option<String>,
    firewalld_zone: Option<String>,
    ingress_policy: Option<String>,
    foreign_forward: Option<String>,
}

impl FirewallConf {
    /// Reads and checks the configuration of a call.
    ///
    /// # Errors
    /// Code 6 for a key of the wrong type, code 7 for a value that makes no sense or cannot be
    /// honoured.
    pub(crate) fn parse(call: &Call) -> Result<Self, CniError> {
        let raw: Raw = call.conf.fields()?;
        let bad = |text: String| Err(CniError::invalid_config(text));
        let zone = raw.firewalld_zone.as_deref().filter(|zone| !zone.is_empty());
        match raw.backend.as_deref() {
            // There is one way here, and it has the same effect as both.
            None | Some("" | "iptables" | "nftables") => {}
            Some("firewalld") => {
                return bad(format!(
                    "key \"backend\" is \"firewalld\": firewalld is not called here; let it know the \
                     pods' subnet once (`firewall-cmd --permanent --zone={} --add-source=SUBNET`, \
                     then `firewall-cmd --reload`) and remove the key",
                    zone.unwrap_or("trusted")
                ));
            }
            Some(other) => {
                return bad(format!(
                    "key \"backend\" is {other:?}: expected \"nftables\" (or \"iptables\", which \
                     is done by nftables too)"
                ));
            }
        }
        if let Some(zone) = zone {
            return bad(format!(
                "key \"firewalldZone\" is {zone:?}: firewalld is not called here; let it know the \
                 pods' subnet once (`firewall-cmd --permanent --zone={zone} --add-source=SUBNET`) \
                 and remove the key"
            ));
        }
        let admin = raw.iptables_admin_chain_name.as_deref().filter(|name| !name.is_empty());
        if let Some(name) = admin.filter(|name| *name != ADMIN) {
            return bad(format!(
                "key \"iptablesAdminChainName\" is {name:?}: the administrator's rules have one \
                 place here, chain {ADMIN} of nftables table inet causeway_cni; put them there and \
                 remove the key"
            ));
        }
        let same_bridge = match raw.ingress_policy.as_deref() {
            None | Some("" | "open") => false,
            Some("same-bridge") => true,
            Some(other) => {
                return bad(format!(
                    "key \"ingressPolicy\" is {other:?}: expected \"open\" or \"same-bridge\""
                ));
            }
        };
        let insert = match raw.foreign_forward.as_deref() {
            None | Some("" | "warn") => false,
            Some("insert") => true,
            Some(other) => {
                return bad(format!(
                    "key \"foreignForward\" is {other:?}: expected \"warn\" or \"insert\""
                ));
            }
        };
        Ok(Self { same_bridge, insert })
    }
}
