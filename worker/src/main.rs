//! `millstream-worker`: runs one stage of a DataPipeline; checks and previews one before it is
//! applied.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    millstream_worker::cli::main()
}
