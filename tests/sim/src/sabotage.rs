//! Bugs that are put back on purpose, to see that the simulation finds them. Each is a decorator around what the engine is
//! given, so none can reach the engine itself.

/// Which.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Sabotage {
    /// The store lets an entry of a log replace another one of the same number: nobody is fenced.
    NoFence,
    /// A sink makes visible what it wrote when that is prepared, not when the checkpoint is claimed.
    CommitBeforeClaim,
    /// A source that goes on from a checkpoint believes that it found one split more than it did.
    ForgetSplit,
    /// After a job was rescaled, an operator begins with an empty list.
    ForgetList,
    /// What users want of a job that runs is not kept: the next coordinator does not know it.
    ForgetWish,
}
