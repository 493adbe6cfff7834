//! `lithe-worker`: `compress` in a Job, `serve` in a Pod. Nothing else happens here.

fn main() {}
