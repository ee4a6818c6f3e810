use std::collections::HashMap;
use tidemill::prelude::*;

#[derive(Row)]
struct Count {
    n: usize,
}

#[derive(Row)]
struct Line {
    text: &str,
}

#[derive(Row)]
struct Tags {
    tags: HashMap<String, String>,
}

fn main() {}
