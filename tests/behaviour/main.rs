//! What the product promises, tried on the real stack: a file per behaviour.

mod secured;
mod wire;
mod world;

mod acl;
mod adversity;
mod atomic;
mod batch;
mod cluster;
mod consume;
mod consume_batch;
mod dashboards;
mod dead_letters;
mod faults;
mod fetch;
mod http;
mod identity;
mod interop;
mod issuer;
mod kit;
mod lag;
mod lag_monitor;
mod leases;
mod life;
mod observability;
mod openapi;
mod registry;
mod retention;
mod schemas;
mod secrets;
mod security;
mod seek;
mod side_by_side;
mod smoke;
mod steps;
mod topics;
