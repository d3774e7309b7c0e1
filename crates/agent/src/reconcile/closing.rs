//! Nothing opens before what closes it.
//!
//! Order alone does not see to that: a table may be refused, and what comes after it must then wait,
//! while all that has nothing to do with it goes on.

use causeway_model::Object;
use causeway_plan::Op;

/// Those of some operations that may be done while others of the same plan are not.
pub(super) fn allowed(ops: &[Op], undone: &[Op], plan: &[Op]) -> Vec<Op> {
    // The table would close the new tunnel and leave the old one open.
    let old_tunnel = undone.iter().any(|op| goes_first(op, plan));
    let open = old_tunnel || undone.iter().any(Op::closes);
    let may = |op: &&Op| !(old_tunnel && op.closes() || open && op.opens());
    ops.iter().filter(may).cloned().collect()
}

/// A tunnel device in the place of which a new one is made.
fn goes_first(op: &Op, plan: &[Op]) -> bool {
    let Op::Remove(Object::Link(link)) = op else { return false };
    let again = |op: &Op| matches!(op, Op::Create(Object::Link(new)) if new.name == link.name);
    link.kind.is_tunnel() && plan.iter().any(again)
}
