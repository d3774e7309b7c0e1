//! Whole labs on the real kernel: nodes, agents, plugins and pods as in production. Each test lives
//! in namespaces of its own and looks for residue at its end.

mod closed;
mod cluster;
mod failures;
mod kubectl;
mod labs;
mod life;
mod matrix;
mod packets;
mod pairs;
mod repair;
mod script;
mod world;
