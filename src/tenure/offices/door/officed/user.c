/* Users: /etc/passwd and /etc/group read directly, since a static binary has no NSS. */
#include "officed.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int find_user(const char *name, struct user *u) {
    char line[1024];
    memset(u, 0, sizeof *u);
    FILE *f = fopen("/etc/passwd", "re");
    int found = 0;
    while (f && !found && fgets(line, sizeof line, f)) {
        char *field[7], *rest = line;
        int n = 0;
        line[strcspn(line, "\n")] = 0;
        while (n < 7 && (field[n] = strsep(&rest, ":"))) n++;
        if (n < 7 || strcmp(field[0], name)) continue;
        u->uid = (uid_t)atoi(field[2]), u->gid = (gid_t)atoi(field[3]);
        snprintf(u->name, sizeof u->name, "%s", field[0]);
        snprintf(u->home, sizeof u->home, "%s", field[5]);
        snprintf(u->shell, sizeof u->shell, "%s", *field[6] ? field[6] : "/bin/sh");
        found = 1;
    }
    if (f) fclose(f);
    if (!found && !strcmp(name, "root")) { /* an office that deleted its root must still be reachable */
        strcpy(u->name, "root"), strcpy(u->home, "/"), strcpy(u->shell, "/bin/sh");
        found = 1;
    }
    if (!found) return -1;
    u->groups[u->groups_n++] = u->gid;
    f = fopen("/etc/group", "re");
    while (f && fgets(line, sizeof line, f)) {
        char *field[4], *rest = line, *member;
        int n = 0;
        line[strcspn(line, "\n")] = 0;
        while (n < 4 && (field[n] = strsep(&rest, ":"))) n++;
        if (n < 4) continue;
        while ((member = strsep(&field[3], ",")))
            if (!strcmp(member, name) && u->groups_n < 64) u->groups[u->groups_n++] = (gid_t)atoi(field[2]);
    }
    if (f) fclose(f);
    return 0;
}
