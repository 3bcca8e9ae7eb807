//! Every kernel that natten-cuda ships, run in the emulator against natten-core's f64 reference.

mod blackwell_calls;
mod box_backwards;
mod case;
mod counters;
mod device;
mod hopper_calls;
mod hopper_references;
mod mutate;
mod out_of_core;
mod streams;
mod suites;
mod tile_costs;
mod tile_plans;
mod vast;
