//! Tells the linker where libduet is: in the folder that DUET_LIB_DIR names, else where pkg-config says.

use std::env;
use std::path::Path;
use std::process::{exit, Command};

fn main() {
    for variable in ["DUET_LIB_DIR", "PKG_CONFIG", "PKG_CONFIG_PATH"] {
        println!("cargo:rerun-if-env-changed={}", variable);
    }
    let found = match env::var_os("DUET_LIB_DIR") {
        Some(folder) => in_folder(Path::new(&folder)),
        None => by_pkg_config(),
    };
    if let Err(sentence) = found {
        eprintln!("{}", sentence);
        exit(1);
    }
}

fn in_folder(folder: &Path) -> Result<(), String> {
    if !folder.join("libduet.so").exists() {
        return Err(format!("DUET_LIB_DIR is {}, but there is no libduet.so in it", folder.display()));
    }
    println!("cargo:rustc-link-search=native={}", folder.display());
    println!("cargo:rustc-link-lib=dylib=duet");
    Ok(())
}

fn by_pkg_config() -> Result<(), String> {
    const WAY_OUT: &str = "set DUET_LIB_DIR to the folder of libduet.so, or PKG_CONFIG_PATH to the folder of duet.pc";
    let program = env::var_os("PKG_CONFIG").unwrap_or_else(|| "pkg-config".into());
    let output = Command::new(&program)
        .args(["--libs", "duet >= 0.1"])
        .output()
        .map_err(|error| format!("{} does not run ({}); {}", program.to_string_lossy(), error, WAY_OUT))?;
    if !output.status.success() {
        return Err(format!("{}{}", String::from_utf8_lossy(&output.stderr), WAY_OUT));
    }
    for flag in String::from_utf8_lossy(&output.stdout).split_whitespace() {
        match flag.split_at(flag.len().min(2)) {
            ("-L", folder) => println!("cargo:rustc-link-search=native={}", folder),
            ("-l", name) => println!("cargo:rustc-link-lib=dylib={}", name),
            _ => {}
        }
    }
    Ok(())
}
