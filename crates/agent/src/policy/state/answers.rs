//! Answers: to plugins whose pods wait, to people, and those that the API gave to a question.

use std::time::{Instant, SystemTime};

use causeway_cluster::Question;
use causeway_policy::read::Object;
use causeway_policy::{Direction, Pod, PodName, Policy, PolicyName};

use super::State;
use crate::policy::Confirm;
use crate::policy::status::{Ask, PolicyStatus, PolicySummary, RealisedPod};

impl State {
    /// The answer to a question. The watch may have told more since, and what it told counts.
    pub(super) fn asked_for(&mut self, object: Object, uid: Option<String>) {
        self.take_in();
        match &object {
            Object::Namespace(name, _) if self.enforcer.world().namespace(name).is_none() => {
                self.put(object, uid);
            }
            Object::Pod(pod) => {
                let name = pod.name.clone();
                let waits = self.waiting.iter().any(|confirm| confirm.pod == name);
                if waits && !self.knows(&name, uid.as_ref()) {
                    self.put(object, uid);
                    self.borrowed.insert(name);
                }
            }
            _ => {}
        }
    }

    fn knows(&self, name: &PodName, uid: Option<&String>) -> bool {
        let known = self.uids.get(name);
        let same = uid.is_none() || known.is_none() || uid == known;
        // One of its name on another node is not this one: the watch is late.
        let here = |pod: &Pod| pod.node.as_deref().is_none_or(|node| node == self.me);
        same && self.enforcer.world().pod(name).is_some_and(here)
    }

    /// Pods that the API is to be asked for.
    pub(in super::super) fn take_questions(&mut self) -> Vec<Question> {
        std::mem::take(&mut self.questions)
    }

    /// Answers what is enforced, when what is known is.
    pub(in super::super) fn ask(&mut self, question: Ask) {
        self.asked.push(question);
    }

    fn unready(&self) -> Option<String> {
        self.missing().map(|what| format!("{what} are not known yet"))
    }

    fn summary(&self) -> PolicySummary {
        let missing = self.unready();
        PolicySummary {
            synced: missing.is_none(),
            problem: missing.or_else(|| self.problem()),
            revision: self.revision,
            policies: self.versions.len(),
            pods: self.enforcer.endpoints().count(),
        }
    }

    fn status(&self) -> PolicyStatus {
        let unix = |at: SystemTime| at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let missing = self.unready();
        let pods = self.enforcer.endpoints().filter_map(|name| {
            let realised = self.enforcer.realised(name)?;
            let of = |direction| {
                let policies = realised.policies.get(&direction)?;
                Some(policies.iter().map(ToString::to_string).collect())
            };
            Some(RealisedPod {
                pod: name.to_string(),
                addresses: realised.addresses.clone(),
                ingress: of(Direction::Ingress),
                egress: of(Direction::Egress),
                shut: realised.shut,
            })
        });
        PolicyStatus {
            synced: missing.is_none(),
            problem: missing.or_else(|| self.problem()),
            revision: self.revision,
            changed: self.changed.map_or(0, |at| unix(at).as_secs()),
            repairs: self.repairs,
            policies: self.versions.clone(),
            pods: pods.collect(),
        }
    }

    /// Answers the plugins whose pods may start, or whose time is over.
    pub(super) fn answer(&mut self, now: Instant) {
        // Whoever asked may have given up.
        for question in std::mem::take(&mut self.asked) {
            match question {
                Ask::Status(reply) => drop(reply.send(Ok(self.status()))),
                Ask::Summary(reply) => drop(reply.send(Ok(self.summary()))),
            }
        }
        for confirm in std::mem::take(&mut self.waiting) {
            let answer = match self.obstacle(&confirm) {
                None => Ok(()),
                Some(why) if now >= confirm.until => Err(why),
                Some(_) => {
                    let mut confirm = confirm;
                    if self.missing().is_none() && confirm.ask_at.take_if(|at| *at <= now).is_some()
                    {
                        self.questions.push(Question {
                            namespace: confirm.pod.namespace.to_string(),
                            name: confirm.pod.name.to_string(),
                        });
                    }
                    self.waiting.push(confirm);
                    continue;
                }
            };
            let _ = confirm.reply.send(answer);
        }
    }

    /// Why a pod may not start yet.
    fn obstacle(&self, confirm: &Confirm) -> Option<String> {
        if let Some(what) = self.missing() {
            return Some(format!("{what} are not known yet: the Kubernetes API has not told them"));
        }
        if let Some(why) = self.problem() {
            return Some(why);
        }
        let world = self.enforcer.world();
        let namespace = &confirm.pod.namespace;
        if !world.policies_for(namespace).any(|policy| policy.subject.is_some()) {
            return None;
        }
        let by_labels = |policy: &Policy| {
            matches!(policy.name, PolicyName::Cluster(_)) && policy.subject.is_some()
        };
        if world.namespace(namespace).is_none() && world.policies_for(namespace).any(by_labels) {
            return Some(format!("the Kubernetes API has not told of the namespace {namespace}"));
        }
        if self.knows(&confirm.pod, confirm.uid.as_ref()) {
            return None;
        }
        Some(format!("the Kubernetes API has not told of the pod {}", confirm.pod))
    }
}
