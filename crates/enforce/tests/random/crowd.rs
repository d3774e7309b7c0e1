//! Many pods under few policies, of which several things change at once.

use super::*;

/// Labels of pods: as many values.
const APPS: u8 = 4;
const PORTS: [u16; 2] = [80, 81];

/// A rule: peers of this label, and which of [`PORTS`] they may use.
type Rule = (u8, [bool; 2]);

#[derive(Clone, Debug)]
struct Policy {
    subject: u8,
    egress: bool,
    rules: Vec<Rule>,
}

#[derive(Clone, Debug)]
enum Edit {
    /// A pod gets another label.
    Label(usize, u8),
    /// A policy is written, or goes.
    Policy(usize, Option<Policy>),
}

fn policy() -> impl Strategy<Value = Policy> {
    let rule = (0..APPS, any::<[bool; 2]>());
    (0..APPS, proptest::bool::weighted(0.3), vec(rule, 0..4))
        .prop_map(|(subject, egress, rules)| Policy { subject, egress, rules })
}

fn edit() -> impl Strategy<Value = Edit> {
    prop_oneof![
        3 => (any::<usize>(), 0..APPS).prop_map(|(at, app)| Edit::Label(at, app)),
        1 => (0..3usize, proptest::option::weighted(0.8, policy()))
            .prop_map(|(at, policy)| Edit::Policy(at, policy)),
    ]
}

impl Policy {
    fn object(&self, number: usize) -> Value {
        let (kind, peers) = match self.egress {
            true => ("egress", "to"),
            false => ("ingress", "from"),
        };
        let rules = self.rules.iter().filter(|(_, ports)| ports.contains(&true));
        let rules = rules.map(|(app, ports)| {
            let ports = PORTS.iter().zip(ports).filter(|(_, of)| **of);
            let ports: Vec<Value> = ports.map(|(port, _)| json!({"port": port})).collect();
            let peer = json!({"podSelector": {"matchLabels": {"app": format!("a{app}")}}});
            json!({peers: [peer], "ports": ports})
        });
        let rules: Vec<Value> = rules.collect();
        let types = [if self.egress { "Egress" } else { "Ingress" }];
        let app = format!("a{}", self.subject);
        json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {"namespace": "x", "name": format!("policy{number}")},
            "spec": {"podSelector": {"matchLabels": {"app": app}}, "policyTypes": types,
                kind: rules}})
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(cases()) })]

    /// Whatever comes at once, no pod is reached or reaches out for a moment as neither before nor behind.
    #[test]
    fn no_moment_between_allows_more(
        apps in vec((0..APPS, any::<bool>()), 6..20),
        policies in vec(proptest::option::weighted(0.7, policy()), 3),
        batches in vec((vec(edit(), 1..8), any::<bool>()), 1..6),
        few in 0..4usize,
        many in prop_oneof![Just(2usize), Just(100)],
        apart in any::<bool>(),
    ) {
        let pod = |number: usize, app: u8, here: bool| {
            let node = if here { ME } else { "n2" };
            let (name, ip) = (format!("p{number}"), format!("10.0.0.{}", number + 1));
            change(&pod(node, &name, &format!("a{app}"), &ip), true)
        };
        let mut enforcer = Enforcer::with_sizes(ME, Sizes { many, few });
        let mut kernel = None;
        let mut all: Vec<Change> = policies
            .iter()
            .enumerate()
            .filter_map(|(number, policy)| Some(change(&policy.as_ref()?.object(number), true)))
            .collect();
        for (number, (app, here)) in apps.iter().enumerate() {
            all.push(pod(number, *app, *here));
            if *here {
                let name = PodName::new("x", format!("p{number}"));
                let ip = IpAddr::from([10, 0, 0, number as u8 + 1]);
                all.push(Change::Endpoint(name, Some(vec![ip])));
            }
        }
        enforcer.change(all);
        repair(&mut enforcer, &mut kernel);
        for (batch, tidily) in batches {
            let changes = batch.into_iter().map(|edit| match edit {
                Edit::Label(at, app) => {
                    let number = at % apps.len();
                    pod(number, app, apps[number].1)
                }
                Edit::Policy(number, Some(policy)) => change(&policy.object(number), true),
                Edit::Policy(number, None) => {
                    let any = Policy { subject: 0, egress: false, rules: Vec::new() };
                    change(&any.object(number), false)
                }
            });
            if apart {
                changes.for_each(|change| enforcer.change([change]));
            } else {
                enforcer.change(changes);
            }
            take_all(&mut enforcer, &mut kernel)?;
            if tidily {
                tidy(&mut enforcer, &mut kernel);
                prop_assert_eq!(kernel.as_ref().unwrap(), enforcer.table());
            }
        }
        tidy(&mut enforcer, &mut kernel);
        prop_assert_eq!(kernel.as_ref().unwrap(), enforcer.table());
    }
}
