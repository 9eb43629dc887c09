"""List the names, things and places of the stories."""

from __future__ import annotations


def _split(text: str) -> tuple[str, ...]:
    return tuple(text.split())


WOMEN = _split("""
    Ada Agnes Alice Amber Anna Astrid Audrey Beatrice Bella Bertha Bianca Bridget Camille Carla Carmen
    Cecilia Celia Clara Claudia Colette Cora Daisy Dana Daphne Della Diana Dora Edith Elena Elise Ella
    Elsa Emily Emma Esther Eva Faye Flora Frances Freda Gemma Gloria Grace Greta Hanna Harriet Hazel Heidi
    Helen Hilda Holly Ida Ingrid Irene Iris Isabel Jane Jenny Joan Judith Julia June Karen Kate Laura Leah
    Lena Lily Linda Lisa Lola Lucy Lydia Mabel Maria Martha Matilda Maud Mavis Mina Miriam Molly Nadia
    Nancy Nina Nora Olga Olive Paula Pearl Petra Rita Rosa Ruby Sara Selma Sonia Sybil Tessa Tilda Vera
    Viola Wanda Wilma Zoe
""")

MEN = _split("""
    Adam Albert Alfred Andrew Anton Arnold Arthur Basil Benedict Bernard Boris Bruno Caleb Carl Cedric
    Charles Clement Conrad Cyril Daniel David Dennis Dexter Edgar Edmund Edward Elias Emil Ernest Eugene
    Felix Ferdinand Francis Frank Frederick George Gerald Gilbert Gregory Gustav Harold Harvey Hector
    Henry Herbert Hugo Igor Isaac Ivan Jack Jacob Jasper Jerome Joel Jonas Joseph Julian Karl Kenneth
    Klaus Lars Leo Leonard Lewis Linus Louis Lucas Luther Marcus Martin Max Milo Moritz Moses Nathan Neil
    Nicholas Niels Norman Oliver Oscar Otto Owen Patrick Paul Peter Philip Ralph Robert Roger Rupert
    Samuel Simon Stefan Theodore Thomas Tobias Victor Walter Wilfred
""")

THINGS = _split("""
    accordion anchor apron atlas axe badge bagpipe ball banjo banner barrel basket bell belt blanket boot
    bottle bowl box bracelet brick broom brush bucket button cable cage calendar camera candle cane cape
    carpet cart chain chair chalk chess chisel clarinet clay clock coat coin comb compass cork crate crown
    crystal cup curtain dagger diary dice doll drum easel engine envelope fan feather fiddle flag flask
    flute fork funnel globe glove goblet gong guitar hammer harp hat helmet honey hook horn horseshoe
    jacket jar jewel jug kettle key kite knife ladder lamp lantern lens letter lock lute magnet mallet map
    marble mask mirror mug nail necklace needle net oar organ padlock paddle paint parcel pebble pencil
    pendant photo piano pillow pipe pitcher plate plum poem portrait pot puppet purse puzzle quilt racket
    radio rake razor ribbon ring robe rope rug ruler sack saddle sandal saw scarf scissors scroll shawl
    shield shovel sickle skate sled slipper soap spade spoon stamp statue stool sword teapot telescope
    tent thimble ticket torch towel trophy trumpet trunk tuba umbrella vase veil vest violin wagon wallet
    watch whistle wig wreath yarn
""")

PLACES = _split("""
    abbey alley arcade archive arena armoury attic bakery balcony ballroom bank barn barrack basement
    bathroom bedroom boathouse brewery bungalow cabin cafe canteen canyon castle cathedral cave cellar
    chapel church cinema circus classroom clinic cloister closet college conservatory corridor cottage
    courtyard crypt dairy dungeon factory farmhouse foundry foyer gallery garage garden gatehouse granary
    greenhouse grotto grove gym hall hangar harbour hayloft hospital hotel hut inn kennel kitchen
    laboratory larder laundry library lobby loft lounge manor market mill mine monastery museum nursery
    office orchard palace pantry park parlour pavilion playground prison quarry refinery restaurant ruin
    salon sauna school shed shelter shop stable stadium station studio study suburb tavern temple theatre
    tower tunnel valley vault courthouse village vineyard warehouse windmill woodshed workshop
""")

DAYS = _split("""
    Monday Tuesday Wednesday Thursday Friday Saturday Sunday
""")

MONTHS = _split("""
    January February March April May July August September October November December
""")
