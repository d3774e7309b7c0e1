//! `causeway reset`: nothing of ours stays on a node, and nothing else goes.

use causeway_lab::Road;
use causeway_types::state::Attach;

use crate::world::{World, binaries, dual, with};

const NODE: &str = "node-1";

/// What others have on the node, on paths and under names like ours.
const FOREIGN: &str = "
    nft add table inet causeway_of_others
    nft add chain inet causeway_of_others c { type filter hook forward priority 7\\; }
    ip link add cwothers type veth peer name cwothers2
    ip link set cwothers up
    ip route add 198.51.100.0/24 via 192.168.1.12 proto 99
    mkdir -p /etc/cni/net.d /var/lib/cni/networks/other
    echo '{}' > /etc/cni/net.d/10-other.conflist.off
    echo c9 > /var/lib/cni/networks/other/10.1.0.5
";

const SHOW_FOREIGN: &str = "
    nft list table inet causeway_of_others; ip -br link show cwothers; ip route show proto 99
    cat /etc/cni/net.d/10-other.conflist.off /var/lib/cni/networks/other/10.1.0.5
";

/// Everything that carries one of our names or marks.
const SHOW_OURS: &str = "
    ip -br link | grep -E '^(cw-|cw[0-9a-f]{11}@|cni0|bwp)'
    ip route show proto 203 table all; ip -6 route show proto 203 table all
    nft list tables | grep -E ' causeway(_cni)?$'
    ls -A /run/causeway /var/lib/causeway /etc/cni/net.d/05-causeway.conflist \\
        /var/lib/cni/networks/pod-network 2>/dev/null | grep -v ':$' | grep .
    true
";

fn shell(world: &World, line: &str) -> String {
    let (ok, said) = world.causeway_shell(NODE, line);
    assert!(ok, "{line}: {said}");
    said
}

#[test]
fn a_node_is_as_before() {
    for attach in [Attach::Routed, Attach::Bridge] {
        with(dual(2, attach, Road::Vxlan), |world| {
            let pods = world.pods();
            shell(world, FOREIGN);
            let foreign = shell(world, SHOW_FOREIGN);
            let bins = world.spec.dirs().node(NODE).join("bin-of-reset");
            let install =
                format!("{} install {} --links", binaries().cni.display(), bins.display());
            shell(world, &install);
            let reset = |words: &[&str]| {
                let dir = bins.display().to_string();
                let all = [&["reset", "--bin-dir", &dir], words].concat();
                world.causeway(NODE, &all)
            };
            let before = shell(world, SHOW_OURS);
            assert!(before.contains("cw-vxlan") && before.contains("owned.json"), "{before}");

            let (done, said) = reset(&["--yes"]);
            assert!(!done && said.contains("an agent runs on this node"), "{said}");
            assert!(said.contains("DaemonSet"), "{said}");
            world.agent(NODE, "stop");
            let before = shell(world, SHOW_OURS);
            let (done, said) = reset(&["--yes"]);
            let named = said.contains("2 pod interfaces are on this node")
                && said.contains("default/a1")
                && said.contains("kubectl drain");
            assert!(!done && named, "{said}");
            let (done, would) = reset(&[]);
            assert!(done && would.contains("Nothing was changed"), "{would}");
            for what in ["cw-vxlan", "05-causeway.conflist", "inet causeway", "bin-of-reset"] {
                assert!(would.contains(what), "{what}: {would}");
            }
            assert_eq!(shell(world, SHOW_OURS), before, "nothing was changed");
            assert!(world.reaches(&world.netns(&pods[0]), pods[2].ips[0], 56));

            let (done, said) = reset(&["--yes", "--with-pods"]);
            assert!(done, "{said}");
            assert_eq!(shell(world, SHOW_OURS), "", "{said}");
            assert_eq!(shell(world, SHOW_FOREIGN), foreign);
            assert_eq!(shell(world, &format!("ls -A {}", bins.display())), "");
            let (done, said) = reset(&["--yes"]);
            assert!(done && !said.contains("Removed:"), "{said}");

            // The node can be taken in again.
            world.agent(NODE, "start");
            world.whole();
            for pod in &pods {
                causeway_lab::delete_pod(&world.client, &pod.name, crate::world::PATIENCE).unwrap();
            }
            world.pods();
            world.all_reach_all();
            shell(
                world,
                "nft delete table inet causeway_of_others; ip link del cwothers; \\
                ip route del 198.51.100.0/24",
            );
        });
    }
}

/// What could not be removed is removed by the next call: nothing that tells of it goes before.
#[test]
fn a_call_that_did_not_end_is_carried_on() {
    with(dual(1, Attach::Bridge, Road::Vxlan), |world| {
        world.pods();
        world.agent(NODE, "stop");
        // A file that cannot be removed.
        let list = "/etc/cni/net.d/05-causeway.conflist";
        shell(world, &format!("chattr +i {list}"));
        let reset = |words: &[&str]| world.causeway(NODE, &[&["reset"], words].concat());
        let (done, said) = reset(&["--yes", "--with-pods"]);
        shell(world, &format!("chattr -i {list}"));
        assert!(!done && said.contains("Could not be removed; call it again"), "{said}");
        assert!(said.contains("/run/causeway") && said.contains("tell the next call"), "{said}");
        let left = shell(world, SHOW_OURS);
        assert!(left.contains("owned.json") && !left.contains("cni0"), "{left}");
        let (done, said) = reset(&["--yes"]);
        assert!(done, "{said}");
        assert_eq!(shell(world, SHOW_OURS), "", "{said}");
    });
}
