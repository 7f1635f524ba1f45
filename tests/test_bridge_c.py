"""The C side: its size on a Cortex-M3, its ports, its packaging, and what the Python side may load."""
from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers_needs import need

from firmware_bridge.build import CORE, CORTEX_M3, SOURCES, STRICT

STUBS = {
    "arduino": {"Arduino.h": """
        #include <stddef.h>
        #include <stdint.h>
        struct HardwareSerial { int availableForWrite(); size_t write(const uint8_t *, size_t); int available();
                                int read(); void flush(); void begin(unsigned long); void end(); };
        extern HardwareSerial Serial;
        unsigned long micros();
    """},
    "esp_idf": {
        "driver/uart.h": """
        #include <stddef.h>
        #include <stdint.h>
        typedef int uart_port_t; typedef int esp_err_t;
        enum { ESP_OK, UART_NUM_0 = 0, UART_DATA_8_BITS = 3, UART_STOP_BITS_1 = 1 };
        typedef struct { int baud_rate, data_bits, stop_bits; } uart_config_t;
        esp_err_t uart_get_tx_buffer_free_size(uart_port_t, size_t *);
        int uart_write_bytes(uart_port_t, const void *, size_t);
        int uart_read_bytes(uart_port_t, void *, uint32_t, uint32_t);
        esp_err_t uart_wait_tx_done(uart_port_t, uint32_t);
        esp_err_t uart_set_baudrate(uart_port_t, uint32_t);
        esp_err_t uart_driver_install(uart_port_t, int, int, int, void *, int);
        esp_err_t uart_param_config(uart_port_t, const uart_config_t *);""",
        "esp_attr.h": "#define RTC_NOINIT_ATTR", "esp_random.h": "uint32_t esp_random(void);",
        "esp_mac.h": "enum { ESP_MAC_WIFI_STA }; int esp_read_mac(uint8_t *, int);",
        "esp_timer.h": "int64_t esp_timer_get_time(void);"},
    "zephyr": {
        "zephyr/drivers/uart.h": """
        #include <stdbool.h>
        #include <stddef.h>
        #include <stdint.h>
        struct device { int x; };
        struct uart_config { uint32_t baudrate; };
        int uart_irq_update(const struct device *), uart_irq_is_pending(const struct device *);
        int uart_irq_rx_ready(const struct device *), uart_irq_tx_ready(const struct device *);
        int uart_fifo_read(const struct device *, uint8_t *, int);
        int uart_fifo_fill(const struct device *, const uint8_t *, int);
        void uart_irq_tx_enable(const struct device *), uart_irq_tx_disable(const struct device *);
        void uart_irq_rx_enable(const struct device *);
        int uart_config_get(const struct device *, struct uart_config *);
        int uart_configure(const struct device *, const struct uart_config *);
        int uart_irq_callback_user_data_set(const struct device *, void (*)(const struct device *, void *), void *);""",
        "zephyr/drivers/hwinfo.h": "#include <stddef.h>\n#include <stdint.h>\n"
                                   "long hwinfo_get_device_id(uint8_t *, size_t);",
        "zephyr/kernel.h": "#define __noinit\nint32_t k_usleep(int32_t); int64_t k_uptime_ticks(void);\n"
                           "uint64_t k_ticks_to_us_floor64(uint64_t);",
        "zephyr/random/random.h": "uint32_t sys_rand32_get(void);",
        "zephyr/sys/ring_buffer.h": """
        struct ring_buf { int x; };
        #define RING_BUF_DECLARE(name, size) static struct ring_buf name
        uint32_t ring_buf_put(struct ring_buf *, const uint8_t *, uint32_t);
        uint32_t ring_buf_get(struct ring_buf *, uint8_t *, uint32_t);
        uint32_t ring_buf_get_claim(struct ring_buf *, uint8_t **, uint32_t);
        int ring_buf_get_finish(struct ring_buf *, uint32_t);
        bool ring_buf_is_empty(struct ring_buf *);"""}}
USES = {"arduino": "bridge_arduino_begin(Serial, 115200, 1, rows, 1, NULL); bridge_arduino_poll();",
        "esp_idf": "bridge_esp_begin(UART_NUM_0, 115200, rows, 1, NULL); bridge_esp_poll();",
        "zephyr": "bridge_zephyr_begin(NULL, 115200, rows, 1, NULL); bridge_zephyr_poll();"}


def run(*command):
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[:2000]
    return done.stdout


@pytest.mark.parametrize("port", STUBS)
def test_a_port_compiles_against_its_sdk_s_functions(port, tmp_path):
    need("g++" if port == "arduino" else "gcc", "g++")
    for name, text in STUBS[port].items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("#pragma once\n" + text)
    source = tmp_path / ("main.cpp" if port == "arduino" else "main.c")
    source.write_text(f"#include \"bridge_{port}.h\"\nint main(void) {{ static const bridge_channel rows[1] = "
                      f"{{{{\"imu\", \"g\", BRIDGE_TYPE_I16, 3, 50000, 1}}}}; {USES[port]} return 0; }}\n")
    run("g++" if port == "arduino" else "gcc", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", "-I", tmp_path,
        "-I", SOURCES, "-I", SOURCES / "ports", source)


def test_it_fits_a_cortex_m3(tmp_path):
    """Flash below 4 KB, RAM below 1 KB and the two frame buffers: what c/README.md says."""
    need("arm-none-eabi-gcc", "gcc-arm-none-eabi")
    flash = 0
    for name in CORE:
        run("arm-none-eabi-gcc", *STRICT, *CORTEX_M3, "-c", SOURCES / name, "-o", tmp_path / "x.o")
        text, data, bss = map(int, run("arm-none-eabi-size", tmp_path / "x.o").splitlines()[1].split()[:3])
        assert data == bss == 0  # no state of its own
        flash += text
    (tmp_path / "s.c").write_text('#include "bridge.h"\nchar all[sizeof(bridge) + sizeof(bridge_retained)];\n'
                                  "char buffers[BRIDGE_FRAME_MOST + BRIDGE_TX_BYTES];\n")
    run("arm-none-eabi-gcc", *CORTEX_M3, "-I", SOURCES, "-c", tmp_path / "s.c", "-o", tmp_path / "s.o")
    sizes = {line.split()[3]: int(line.split()[1], 16) for line in
             run("arm-none-eabi-nm", "-S", tmp_path / "s.o").splitlines()}
    assert flash < 4096
    assert sizes["all"] - sizes["buffers"] < 1024


def test_the_c_side_allocates_nothing_and_needs_no_library():
    for name in CORE:
        text = (SOURCES / name).read_text() + (SOURCES / "bridge.h").read_text()
        assert not re.search(r"\b(malloc|calloc|realloc|free|printf|memcpy|strlen)\s*\(", text)
        assert set(re.findall(r"#include <(.*?)>", text)) == {"stdbool.h", "stddef.h", "stdint.h"}


def test_a_wheel_carries_the_c_sources(tmp_path):
    """`pip install .` must bring what the simulator compiles and what the host parses."""
    try:
        import tomllib
    except ModuleNotFoundError:  # Python 3.10
        import tomli as tomllib

    root = Path(__file__).resolve().parents[1]
    setuptools = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert "firmware_bridge" in setuptools["packages"]["find"]["include"]
    shipped = {path for pattern in setuptools["package-data"]["firmware_bridge"]
               for path in (root / "firmware_bridge").glob(pattern)}
    wanted = {path for path in (root / "firmware_bridge").rglob("*")
              if path.is_file() and path.suffix not in (".py", ".pyc")}
    assert wanted <= shipped


def test_the_host_side_loads_neither_onnx_nor_a_serial_library_before_it_is_used():
    code = ("import sys, firmware_bridge.reader, firmware_bridge.wires; "
            "print(*sorted({name.split('.')[0] for name in sys.modules}))")
    loaded = set(run(sys.executable, "-c", code).split())
    assert not loaded & {"serial", "onnxruntime", "onnx", "torch", "sqlite3", "PIL", "rich"}
    assert "cobs" in loaded


LAYERS = ("schema faults", "framing build", "messages clock", "incoming commands", "session wires",
          "link", "reader", "board", "simulator")
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names.split()}


@pytest.mark.parametrize("path", sorted((SOURCES.parent).glob("[a-z]*.py")), ids=lambda path: path.stem)
def test_the_host_side_imports_downwards_and_of_edgecl_only_its_errors(path):
    for name in re.findall(r"^\s*from (edgecl\S*|firmware_bridge\S*) import", path.read_text(), re.MULTILINE):
        assert name == "edgecl.errors" or LEVEL[name.split(".")[1]] < LEVEL[path.stem], name
