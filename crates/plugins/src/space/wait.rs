//! Waiting for what the kernel does by the way.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use causeway_cni_spec::CniError;
use causeway_kernel::Handle;
use causeway_types::IfName;

use super::Space;

/// How long the kernel may take until what was made works: it does it by the way, and with many
/// pods at once on few processors that comes late.
const SETTLED: Duration = Duration::from_secs(10);
/// Between the first two looks at it; then twice as long each time. Many that look without rest
/// keep the kernel from doing it.
const BREATH: Duration = Duration::from_micros(50);
const LONGEST_BREATH: Duration = Duration::from_millis(20);

impl Space {
    /// Waits until packets pass an interface: what is sent the moment after ADD answers must not
    /// be lost.
    ///
    /// # Errors
    /// Code 999 when it does not come to that in time.
    pub(crate) fn wait_running(&mut self, name: &IfName) -> Result<(), CniError> {
        let what = format!("interface {name} has no carrier");
        self.wait(&what, |handle| Ok(handle.link_running(name)? == Some(true)))
    }

    /// Waits until packets to addresses are taken in: the kernel is a moment late with those of
    /// IPv6, and with duplicate address detection a second or two.
    ///
    /// # Errors
    /// Code 999 when it does not come to that in time, or another has the address.
    pub(crate) fn wait_local(
        &mut self,
        dev: &IfName,
        addresses: &[IpAddr],
    ) -> Result<(), CniError> {
        for ip in addresses.iter().filter(|ip| ip.is_ipv6()) {
            let what = format!("address {ip} takes no packets");
            self.wait(&what, |handle| match handle.is_local(*ip)? {
                false if handle.is_duplicate(dev, *ip)? => {
                    Err(causeway_kernel::Error::Invalid(format!(
                        "address {ip} is somebody else's on this link (duplicate address detection \
                         found it): remove it there, or keep it out of the range"
                    )))
                }
                local => Ok(local),
            })?;
        }
        Ok(())
    }

    fn wait(
        &mut self,
        what: &str,
        mut done: impl FnMut(&mut Handle) -> Result<bool, causeway_kernel::Error>,
    ) -> Result<(), CniError> {
        let (start, mut breath) = (Instant::now(), BREATH);
        while !done(&mut self.handle).map_err(|e| self.unreadable(&e))? {
            if start.elapsed() > SETTLED {
                return Err(CniError::internal(format!(
                    "{what} {}, {SETTLED:?} after it was made: something else removes it or sets it \
                     down",
                    self.place
                )));
            }
            std::thread::sleep(breath);
            breath = LONGEST_BREATH.min(breath * 2);
        }
        Ok(())
    }
}
