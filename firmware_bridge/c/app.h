/* The example firmware, the same on a PC and in QEMU: an IMU channel, a log channel for objects, and four commands. */
#ifndef APP_H
#define APP_H

#include "bridge.h"

enum { APP_COUNT = BRIDGE_COMMAND_FIRST, APP_OBJECT, APP_RESET };

/* What the board adds. effect: does what COUNT asks for, and returns how often it did; reset: does not return. */
typedef struct {
    uint32_t (*effect)(uint32_t argument);
    void (*reset)(void);
} app_board;

typedef struct {
    bridge link;
    bridge_port port;
    bridge_channel channels[2];
    bridge_object object;
    app_board board;
    uint32_t reset_asked;
    bool sending, resetting;
} app;

/* imu: the row of the first channel; port: board and command are set by app_init. */
bool app_init(app *a, bridge_port port, app_board board, bridge_channel imu, bridge_identity identity,
              bridge_retained *retained, uint32_t baud);
void app_poll(app *a);

#endif
