//! The configuration of type `host-device`, and the device that it means.

use std::path::{Path, PathBuf};

use causeway_cni_spec::CniError;
use causeway_kernel::device::Device;
use causeway_types::Mac;
use serde::Deserialize;

use crate::call::Call;
use crate::space::Space;

/// Drivers that hand a device to a program in user space: it has no network interface then.
const DPDK_DRIVERS: [&str; 3] = ["vfio-pci", "uio_pci_generic", "igb_uio"];

/// A checked configuration: at least one of these names the device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HostDeviceConf {
    /// Its name, or an alternative one.
    pub device: Option<String>,
    /// Its Ethernet address.
    pub hwaddr: Option<Mac>,
    /// Its directory below `/sys/devices`.
    pub kernelpath: Option<PathBuf>,
    /// Its address on the PCI bus, or that of an auxiliary device, and the key that says so.
    pub bus_id: Option<(&'static str, String)>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Raw {
    device: Option<String>,
    hwaddr: Option<String>,
    kernelpath: Option<String>,
    #[serde(rename = "pciBusID")]
    pci_bus_id: Option<String>,
}

impl HostDeviceConf {
    /// Reads and checks the configuration of a call.
    ///
    /// # Errors
    /// Code 6 for a key of the wrong type, code 7 for a value that makes no sense.
    pub(crate) fn parse(call: &Call) -> Result<Self, CniError> {
        let raw: Raw = call.conf.fields()?;
        let given = |text: Option<String>| text.filter(|t| !t.is_empty());
        let bad = |key: &str, value: &str, why: &str| {
            CniError::invalid_config(format!("key {key:?} is {value:?}: {why}"))
        };
        let hwaddr = given(raw.hwaddr).map(|text| {
            text.parse::<Mac>()
                .map_err(|_| bad("hwaddr", &text, "expected six pairs of hex digits, aa:bb:…"))
        });
        let kernelpath = given(raw.kernelpath).map(|text| {
            let path = PathBuf::from(&text);
            let up = path.components().any(|c| c.as_os_str() == "..");
            if path.starts_with("/sys/devices") && !up {
                return Ok(path);
            }
            Err(bad("kernelpath", &text, "expected a directory below /sys/devices"))
        });
        let by_runtime = given(call.conf.runtime_config.device_id.clone());
        let bus_id = match by_runtime {
            Some(id) => Some(("runtimeConfig.deviceID", id)),
            None => given(raw.pci_bus_id).map(|id| ("pciBusID", id)),
        };
        if let Some((key, id)) = bus_id.as_ref().filter(|(_, id)| id.contains('/') || id == "..") {
            return Err(bad(key, id, "expected an address on the PCI bus, as 0000:3b:00.1"));
        }
        let conf = Self {
            device: given(raw.device),
            hwaddr: hwaddr.transpose()?,
            kernelpath: kernelpath.transpose()?,
            bus_id,
        };
        let nothing = Self { device: None, hwaddr: None, kernelpath: None, bus_id: None };
        if conf == nothing {
            return Err(CniError::invalid_config(
                "no device is named: specify \"device\", \"hwaddr\", \"kernelpath\" or \"pciBusID\" (or \
                 let the runtime pass the capability \"deviceID\")",
            ));
        }
        Ok(conf)
    }

    /// The device on the node. Where several keys name one, they must mean the same.
    ///
    /// # Errors
    /// Code 7 when there is none, it has no network interface, or the keys contradict each other.
    pub(crate) fn find(&self, node: &mut Space) -> Result<Device, CniError> {
        let mut found: Option<(String, Device)> = None;
        for (key, value) in self.keys() {
            let device = self.find_by(key, node)?.ok_or_else(|| {
                CniError::invalid_config(format!(
                    "key {key:?} is {value:?}: the node has no such interface (link not found); it \
                     may be in a container already, see `ip link`"
                ))
            })?;
            match &found {
                Some((other, first)) if first.index != device.index => {
                    return Err(CniError::invalid_config(format!(
                        "key {other:?} means interface {}, key {key:?} means {}: remove one of them",
                        first.link.name, device.link.name
                    )));
                }
                Some(_) => {}
                None => found = Some((key.to_owned(), device)),
            }
        }
        found.map(|(_, device)| device).ok_or_else(|| CniError::internal("no device is named"))
    }

    fn keys(&self) -> impl Iterator<Item = (&'static str, String)> {
        let path = self.kernelpath.as_ref().map(|p| p.display().to_string());
        [
            self.device.clone().map(|v| ("device", v)),
            self.hwaddr.map(|v| ("hwaddr", v.to_string())),
            path.map(|v| ("kernelpath", v)),
            self.bus_id.clone(),
        ]
        .into_iter()
        .flatten()
    }

    fn find_by(&self, key: &str, node: &mut Space) -> Result<Option<Device>, CniError> {
        match key {
            "device" => named(node, self.device.as_deref().unwrap_or_default()),
            "hwaddr" => {
                let all = node.handle().devices().map_err(|e| node.unreadable(&e))?;
                // The first: what sits on top of a device (a VLAN) often has its address too.
                Ok(all.into_iter().find(|d| d.link.mac == self.hwaddr))
            }
            "kernelpath" => {
                let dir = self.kernelpath.clone().unwrap_or_default();
                first_of(node, &dir.join("net"))
            }
            _ => {
                let id = self.bus_id.as_ref().map(|(_, id)| id.as_str()).unwrap_or_default();
                on_bus(node, key, id)
            }
        }
    }
}

fn named(node: &mut Space, name: &str) -> Result<Option<Device>, CniError> {
    crate::inside::device(node, name)
}

/// The interface of a device on the PCI bus (behind virtio one level deeper), or of an auxiliary
/// device of one (a scalable function).
fn on_bus(node: &mut Space, key: &str, id: &str) -> Result<Option<Device>, CniError> {
    let pci = Path::new("/sys/bus/pci/devices").join(id);
    let driver = std::fs::read_link(pci.join("driver")).ok();
    let driver = driver.as_deref().and_then(Path::file_name).and_then(|n| n.to_str());
    if let Some(driver) = driver.filter(|d| DPDK_DRIVERS.contains(d)) {
        return Err(CniError::invalid_config(format!(
            "key {key:?} is {id:?}: the device is bound to driver {driver} for a program in user space \
             (DPDK) and has no network interface to move; bind it to its network driver, or let the \
             program have it without this plugin"
        )));
    }
    let mut dirs = vec![pci.join("net")];
    for entry in std::fs::read_dir(&pci).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with("virtio") {
            dirs.push(entry.path().join("net"));
        }
    }
    dirs.push(Path::new("/sys/bus/auxiliary/devices").join(id).join("net"));
    for dir in dirs {
        if let Some(found) = first_of(node, &dir)? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

/// The first interface that a directory of sysfs names and that is in the node's namespace.
fn first_of(node: &mut Space, dir: &Path) -> Result<Option<Device>, CniError> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<String> =
        entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    for name in names {
        if let Some(found) = named(node, &name)? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}
