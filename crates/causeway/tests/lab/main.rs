//! Whole labs on the real kernel: nodes, agents, plugins and pods as in production. Each test lives
//! in namespaces of its own and looks for residue at its end.

mod announce;
mod away;
mod closed;
mod cluster;
mod doctor;
mod failures;
mod faults;
mod kubectl;
mod labs;
mod life;
mod matrix;
mod openings;
mod outage;
mod packets;
mod pairs;
mod repair;
mod restarts;
mod script;
mod streams;
mod strict;
mod world;
