//! What the product promises, tried on the real stack: a file per behaviour.

mod world;

mod consume;
mod faults;
mod leases;
mod observability;
mod retention;
