//! Makes the stubs from the schema, without a system `protoc`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let schema = protox::compile(["proto/cluster.proto"], ["proto"])?;
    tonic_prost_build::configure().bytes(".").compile_fds(schema)?;
    Ok(())
}
