//! Every kernel that natten-cuda ships, run in the emulator against natten-core's f64 reference.

mod case;
mod counters;
mod mutations;
mod semantics;
mod shapes;
mod sm90;
mod sm90_layouts;
mod sm90_mutations;
mod subject;
mod suites;
mod tile_costs;
mod tile_mutations;
mod tiles;
