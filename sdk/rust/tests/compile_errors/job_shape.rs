use tidemill::prelude::*;

#[tidemill::job]
fn without_flow() {}

#[tidemill::job]
fn with_result(flow: &mut Flow) -> Result<(), String> {
    Ok(())
}

#[tidemill::job(name = "x")]
fn with_arguments(flow: &mut Flow) {}

fn main() {}
