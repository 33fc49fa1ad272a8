//! `millstream-worker`: runs one stage of a DataPipeline; checks and previews one before it is
//! applied.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // The allocator asks for huge pages, which Linux hands out whole: 50 MB that nobody uses. They make
    // nothing faster here.
    #[cfg(target_os = "linux")]
    let _ = rustix::thread::disable_transparent_huge_pages(true);
    millstream_worker::cli::main()
}
