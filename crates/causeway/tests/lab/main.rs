//! Whole labs on the real kernel: nodes, agents, plugins and pods as in production. Each test lives
//! in namespaces of its own and looks for residue at its end.

mod announce;
mod away;
mod closed;
mod cluster;
mod config;
mod doctor;
mod enforce;
mod enforce_faults;
mod enforce_life;
mod enforce_services;
mod failures;
mod faults;
mod kube_proxy;
mod kubectl;
mod labs;
mod life;
mod matrix;
mod migrate;
mod openings;
mod outage;
mod packets;
mod pairs;
mod policy;
mod ranges;
mod repair;
mod reset;
mod restarts;
mod rolling;
mod script;
mod services;
mod site;
mod streams;
mod strict;
mod world;
