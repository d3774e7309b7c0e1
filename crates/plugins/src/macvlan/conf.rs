//! The configuration of type `macvlan`.

use causeway_cni_spec::CniError;
use causeway_kernel::device::{Macvlan, Mode};
use causeway_types::Mtu;
use serde::Deserialize;

use crate::bridge::conf::mtu;
use crate::call::Call;

/// A checked configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MacvlanConf {
    /// The device below; `None`: that of the default route.
    pub master: Option<String>,
    /// The device below is in the pod's namespace.
    pub link_in_container: bool,
    /// MTU; `None`: that of the device below.
    pub mtu: Option<Mtu>,
    /// Mode and queue.
    pub properties: Macvlan,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Raw {
    master: Option<String>,
    mode: Option<String>,
    mtu: Option<i64>,
    link_in_container: Option<bool>,
    bcqueuelen: Option<i64>,
}

impl MacvlanConf {
    /// Reads and checks the configuration of a call.
    ///
    /// # Errors
    /// Code 6 for a key of the wrong type, code 7 for a value that makes no sense.
    pub(crate) fn parse(call: &Call) -> Result<Self, CniError> {
        let raw: Raw = call.conf.fields()?;
        Ok(Self {
            master: raw.master.filter(|m| !m.is_empty()),
            link_in_container: raw.link_in_container.unwrap_or(false),
            mtu: mtu(raw.mtu.unwrap_or(0))?,
            properties: Macvlan {
                mode: mode(raw.mode.as_deref().unwrap_or_default())?,
                bc_queue_len: queue(raw.bcqueuelen.unwrap_or(0))?,
            },
        })
    }
}

fn mode(name: &str) -> Result<Mode, CniError> {
    let name = if name.is_empty() { "bridge" } else { name };
    let found = Mode::ALL.into_iter().find(|(_, n)| *n == name).map(|(mode, _)| mode);
    found.ok_or_else(|| {
        CniError::invalid_config(format!(
            "key \"mode\" is {name:?}: expected \"bridge\", \"private\", \"vepa\" or \"passthru\""
        ))
    })
}

fn queue(length: i64) -> Result<Option<u32>, CniError> {
    match u32::try_from(length) {
        Ok(0) => Ok(None),
        Ok(length) => Ok(Some(length)),
        Err(_) => Err(CniError::invalid_config(format!(
            "key \"bcqueuelen\" is {length}: must be 1 to 4294967295 packets, or 0 for the default"
        ))),
    }
}
