//! What the loop asks of crate `desired` beside the node's objects.

use std::collections::BTreeSet;

use causeway_desired::input::Config;
use causeway_desired::pod::{PodContext, host_objects};
use causeway_model::Key;
use causeway_types::state::AttachmentRecord;

/// Keys of what the node holds for these attachments.
pub(crate) fn host_keys(records: &[AttachmentRecord], config: &Config) -> BTreeSet<Key> {
    let context =
        PodContext { served: true, hairpin: false, route_protocol: config.route_protocol };
    let mut all = BTreeSet::new();
    for record in records {
        all.extend(host_objects(record, &context).iter().map(|(key, _)| key.clone()));
    }
    all
}
