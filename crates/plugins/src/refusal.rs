//! Why an attachment got no address, in words.

use std::net::IpAddr;

use causeway_cni_spec::CniError;
use causeway_ipam::AllocError;

use crate::leases::Leases;
use crate::store::Loaded;

impl Leases {
    /// The error of an ADD. What it says of leases is what `loaded` holds.
    pub(crate) fn refusal(&self, error: &AllocError, loaded: &Loaded) -> CniError {
        match error {
            AllocError::Exhausted { .. } => CniError::internal(format!(
                "{error}; leases are in {}: remove those of pods that are gone (the command GC \
                 does) or {}{}",
                self.dir.display(),
                match self.record {
                    None => "enlarge the range",
                    // Of a network that an agent serves.
                    Some(_) =>
                        "give the Node another range (annotation causeway.dev/extra-pod-cidrs)",
                },
                match loaded.torn.iter().next() {
                    Some(ip) => format!(
                        "; {} of them, {ip} first, hold nothing that can be read and may be in use",
                        loaded.torn.len()
                    ),
                    None => String::new(),
                }
            )),
            AllocError::Duplicate { .. } => CniError::internal(error.to_string()),
            AllocError::Taken { ip, .. } => self.taken(*ip, error),
            AllocError::Gateway(_)
            | AllocError::Unusable(_)
            | AllocError::Reserved(_)
            | AllocError::NotInRanges(_) => CniError::invalid_config(error.to_string()),
        }
    }

    /// Who has an address that was asked for, by the name of the pod where that is known. One of the
    /// same name is the pod's own former sandbox, whose DEL is still to come.
    fn taken(&self, ip: IpAddr, error: &AllocError) -> CniError {
        let holder = self.records.read(ip).ok().flatten().and_then(|record| record.pod);
        let Some(holder) = holder else { return CniError::internal(error.to_string()) };
        let own = self.record.as_ref().and_then(|record| record.pod.as_ref());
        if own.is_some_and(|own| (&own.namespace, &own.name) == (&holder.namespace, &holder.name)) {
            return CniError::try_again(format!(
                "{error}: a former sandbox of pod {holder}, which is about to be removed"
            ));
        }
        CniError::internal(format!("{error}: that is pod {holder}"))
    }
}
