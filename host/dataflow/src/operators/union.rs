//! Several inputs as one stream: each contributes the columns that its `reads` name, copying nothing.

use tidemill_core::ids::{InputIndex, Port};
use tidemill_core::operator::{Operator, Output, Progress};
use tidemill_core::time::Watermark;
use tidemill_core::{Batch, Error, Result};

use super::Build;

/// Makes the operator of a `union` node.
pub fn build(build: Build<'_>) -> Result<Box<dyn Operator>> {
    let node = build.graph.node(build.id)?;
    let reads = node.inputs.iter().map(|input| input.reads.iter().map(|&column| column as usize).collect()).collect();
    Ok(Box::new(Union { reads }))
}

struct Union {
    /// Per input: the columns that become the union's.
    reads: Vec<Vec<usize>>,
}

impl Operator for Union {
    fn process(&mut self, input: InputIndex, batch: Batch, out: &mut dyn Output) -> Result<Progress> {
        let reads = self.reads.get(input.index()).ok_or_else(|| Error::internal(format!("{input} of a union")))?;
        out.emit(Port(0), batch.project(reads)?)?;
        Ok(Progress::Done)
    }

    fn on_watermark(&mut self, _watermark: Watermark, _out: &mut dyn Output) -> Result<Progress> {
        Ok(Progress::Done)
    }
}
